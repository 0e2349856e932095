# What the scripts beside this file share. It is sourced.

fail() { echo "${0##*/}: $*" >&2; exit 1; }

# curl_with OPTION... reads more options from stdin: other users of this machine see
# the arguments of a command, and secrets are none of their business. It follows no
# redirect, so that no token goes to another host.
curl_with() { curl --silent --show-error --config - "$@"; }

# option NAME VALUE prints an option for curl_with.
option() {
    local value=${2//\\/\\\\}
    value=${value//\"/\\\"}
    printf '%s = "%s"\n' "$1" "${value//$'\n'/\\n}"
}

# post URL NAME=VALUE... sends a form and prints the answer, whatever its status.
post() {
    local url=$1 pair
    shift
    for pair; do option data-urlencode "$pair"; done | curl_with "$url" || fail "no answer from $url"
}

# field NAME prints a field of a JSON object of texts, nothing if there is none.
field() {
    local name="\"$1\"[[:space:]]*:[[:space:]]*\""
    sed -n "/$name/{ s/.*$name\([^\"]*\)\".*/\1/p; q; }"
}

# call URL TOKEN calls an application: its answer is in $answer then, the status in
# $status.
call() {
    answer=$(option header "Authorization: Bearer $2" | curl_with --write-out '\n%{http_code}' "$1") || fail "no answer from $1"
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

# listen STATE waits on 127.0.0.1 for the browser, ten minutes at most. It prints the
# port first, and then the query of the request that has the state: what has not came
# from somebody else.
listen() {
    perl -MIO::Socket::INET -e '
        $| = 1, $SIG{INT} = "DEFAULT";
        alarm 600;
        my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 5) or die "$!\n";
        print $server->sockport, "\n";
        while (my $browser = $server->accept) {
            # A connection that says nothing must not keep us.
            setsockopt $browser, SOL_SOCKET, SO_RCVTIMEO, pack("l!l!", 5, 0);
            my ($query) = (<$browser> // "") =~ m{^GET /callback\?(\S+) };
            while (<$browser>) { last if /^\r?\n$/ }
            my $ours = ($query // "") =~ /(?:^|&)state=\Q$ARGV[0]\E(?:&|$)/;
            printf $browser "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n%s\n",
                $ours ? ("200 OK", "Go back to the terminal.") : ("400 Bad Request", "This is not the sign-in that was begun here.");
            close $browser;
            if ($ours) { print "$query\n"; last }
        }' "$1"
}

# parameter NAME QUERY prints a parameter of a query, decoded.
parameter() {
    local pairs pair value
    IFS='&' read -ra pairs <<<"$2"
    for pair in "${pairs[@]}"; do
        [[ $pair == "$1="* ]] || continue
        value=${pair#*=} value=${value//\\/%5C} value=${value//+/ }
        printf '%b' "${value//%/\\x}"
        return
    done
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
