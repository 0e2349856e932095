# What the scripts beside this file share. It is sourced.

fail() { echo "${0##*/}: $*" >&2; exit 1; }

# curl_with OPTION... reads more options from stdin: other users of this machine see
# the arguments of a command, and secrets are none of their business. curl follows no
# redirect unless told to, so that no token goes to another host.
curl_with() { curl --silent --show-error --config - "$@"; }

# post URL NAME=VALUE... sends a form and prints the answer, whatever its status.
post() {
    local url=$1
    shift
    printf 'data-urlencode = "%s"\n' "$@" | curl_with "$url" || fail "no answer from $url"
}

# field NAME prints a field of a JSON object of texts, nothing if there is none.
field() { sed -n "s/.*\"$1\"[[:space:]]*:[[:space:]]*\"\([^\"]*\)\".*/\1/p" | head -n 1; }

# call URL TOKEN calls an application: its answer is in $answer then, the status in
# $status.
call() {
    answer=$(printf 'header = "Authorization: Bearer %s"\n' "$2" | curl_with --write-out '\n%{http_code}' "$1") || fail "no answer from $1"
    status=${answer##*$'\n'} answer=${answer%$'\n'*}
}

# finish URL ends the script with what the last call was answered.
finish() {
    printf '%s\n' "$answer"
    case $status in
    200) exit 0 ;;
    401) fail "$1 does not take the token" ;;
    403) fail "you are signed in, but you may not use $1" ;;
    *) fail "$1 answered $status" ;;
    esac
}

# listen STATE waits on 127.0.0.1 for the browser. It prints the port first, and then
# the query of the request that has the state: what has not came from somebody else.
listen() {
    perl -MIO::Socket::INET -e '
        $| = 1;
        my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 5) or die "$!\n";
        print $server->sockport, "\n";
        while (my $browser = $server->accept) {
            my ($query) = (<$browser> // "") =~ m{^GET /callback\?(\S+) };
            my $ours = "&" . ($query // "") . "&" =~ /&state=\Q$ARGV[0]\E&/;
            printf $browser "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n%s\n",
                $ours ? ("200 OK", "Go back to the terminal.") : ("400 Bad Request", "This is not the sign-in that was begun here.");
            close $browser;
            if ($ours) { print "$query\n"; last }
        }' "$1"
}

# parameter NAME QUERY prints a parameter of a query, decoded.
parameter() {
    local value
    value=$(printf '%s' "$2" | tr '&' '\n' | sed -n "s/^$1=//p" | head -n 1)
    value=${value//+/ }
    printf '%b' "${value//%/\\x}"
}

random() { openssl rand -hex 32; }

# keep FILE NAME=VALUE... writes a file for nobody but you, whole or not at all, and
# kept FILE NAME reads it.
keep() {
    local file=$1
    shift
    (umask 077 && printf '%s\n' "$@" >"$file.new") && mv "$file.new" "$file"
}
kept() { [ -f "$1" ] && sed -n "s/^$2=//p" "$1" || true; }
