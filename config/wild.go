package config

import (
	"regexp"
	"regexp/syntax"
	"slices"
)

// longestProgram bounds the expressions that wildPath takes on.
const longestProgram = 2000

// expression is the regex of a route, compiled to be followed step by step.
type expression struct {
	match   *regexp.Regexp
	program *syntax.Prog
	// begin is what every match begins with.
	begin string
	// seen tells which threads were met since it was cleared.
	seen map[thread]bool
}

func newExpression(text string) *expression {
	e := &expression{seen: map[thread]bool{}}
	var err error
	if e.match, err = regexp.Compile("^(?:" + text + ")$"); err != nil {
		return nil
	}
	e.begin = literalPrefix(text)
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil
	}
	if e.program, err = syntax.Compile(tree.Simplify()); err != nil || len(e.program.Inst) > longestProgram {
		return nil
	}
	return e
}

// thread is a place in the program of an expression; wild is whether a wildcard
// or a class was needed to get there.
type thread struct {
	pc   uint32
	wild bool
}

// wildPath is a path that begins with prefix and that the expression matches
// without spelling prefix out: of /.*\.js and /admin/ it is /admin/.js. It is ""
// if there is none. Work counts down what it costs; below 0 it gives up.
func (e *expression) wildPath(prefix string, work *int) string {
	clear(e.seen)
	threads := e.follow(nil, thread{pc: uint32(e.program.Start)})
	for _, r := range prefix {
		if *work -= 10 * len(threads); *work < 0 {
			return ""
		}
		clear(e.seen)
		var next []thread
		// Those that are not wild go first: where both kinds arrive, the expression
		// does spell the text out.
		for _, wild := range []bool{false, true} {
			for _, t := range threads {
				inst := &e.program.Inst[t.pc]
				if !consumes(inst) || !inst.MatchRune(r) {
					continue
				}
				if after := (thread{inst.Out, t.wild || !literal(inst)}); after.wild == wild {
					next = e.follow(next, after)
				}
			}
		}
		threads = next
	}
	threads = slices.DeleteFunc(threads, func(t thread) bool { return !t.wild })
	if *work -= 10 * len(e.program.Inst); len(threads) == 0 || *work < 0 {
		return ""
	}
	path := prefix + e.completion(threads)
	// Anchors and word boundaries were passed by unseen.
	if !e.match.MatchString(path) {
		return ""
	}
	return path
}

// follow adds a thread and those that it leads to without reading anything, as
// far as they were not met since seen was cleared.
func (e *expression) follow(threads []thread, t thread) []thread {
	for {
		if e.seen[t] || e.seen[thread{pc: t.pc}] {
			return threads
		}
		e.seen[t] = true
		threads = append(threads, t)
		inst := &e.program.Inst[t.pc]
		switch inst.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			threads = e.follow(threads, thread{inst.Arg, t.wild})
		case syntax.InstCapture, syntax.InstNop, syntax.InstEmptyWidth:
		default:
			return threads
		}
		t.pc = inst.Out
	}
}

// completion is the shortest text that leads from one of the threads to a match.
func (e *expression) completion(threads []thread) string {
	type step struct {
		pc   uint32
		from int
		read rune
	}
	clear(e.seen)
	var steps []step
	for _, t := range threads {
		e.seen[t] = true
		steps = append(steps, step{t.pc, -1, 0})
	}
	for i := 0; i < len(steps); i++ {
		inst := &e.program.Inst[steps[i].pc]
		if inst.Op == syntax.InstMatch {
			var text []rune
			for ; steps[i].from >= 0; i = steps[i].from {
				text = append(text, steps[i].read)
			}
			slices.Reverse(text)
			return string(text)
		}
		if consumes(inst) {
			for _, t := range e.follow(nil, thread{inst.Out, true}) {
				steps = append(steps, step{t.pc, i, sample(inst)})
			}
		}
	}
	return ""
}

func consumes(inst *syntax.Inst) bool {
	switch inst.Op {
	case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
		return true
	}
	return false
}

// literal reports whether an instruction stands for one letter, in either case.
func literal(inst *syntax.Inst) bool {
	switch {
	case inst.Op == syntax.InstRune1, len(inst.Rune) == 1:
		return true
	case inst.Op != syntax.InstRune:
		return false
	}
	letters := rune(0)
	for i := 0; i+1 < len(inst.Rune); i += 2 {
		letters += inst.Rune[i+1] - inst.Rune[i] + 1
	}
	return letters <= 2
}

// sample is something that an instruction reads, a plain letter if possible.
func sample(inst *syntax.Inst) rune {
	for _, r := range "xa0/" {
		if inst.MatchRune(r) {
			return r
		}
	}
	if len(inst.Rune) > 0 {
		return inst.Rune[0]
	}
	return 'x'
}
