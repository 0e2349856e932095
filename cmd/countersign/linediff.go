package main

import (
	"slices"
	"strings"
)

// maxLineProduct bounds the table of a line diff. Beyond it, what is not equal
// at either end is shown as taken out and put in.
const maxLineProduct = 4 << 20

// diffLines compares two texts: of each line "- " and what was taken out, "+ "
// and what was put in, and "  " and the lines above, less indented, that these
// stand under. Equal texts have none.
func diffLines(before, after string) []string {
	lines := editScript(splitLines(before), splitLines(after))
	shown := make([]bool, len(lines))
	for i, line := range lines {
		if line[0] == ' ' {
			continue
		}
		shown[i] = true
		depth := indentation(line)
		for j := i - 1; j >= 0 && depth > 0; j-- {
			if d := indentation(lines[j]); d < depth {
				shown[j], depth = true, d
			}
		}
	}
	result := []string{}
	for i, line := range lines {
		if shown[i] {
			result = append(result, line)
		}
	}
	return result
}

func splitLines(text string) []string {
	if text = strings.TrimRight(text, "\n"); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// indentation is that of a line behind its mark.
func indentation(line string) int {
	return len(line[2:]) - len(strings.TrimLeft(line[2:], " "))
}

// editScript is all lines, marked, along a longest common subsequence.
func editScript(before, after []string) []string {
	start := 0
	for start < min(len(before), len(after)) && before[start] == after[start] {
		start++
	}
	tail := 0
	for tail < min(len(before), len(after))-start && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	script := marked("  ", before[:start])
	script = append(script, editMiddle(before[start:len(before)-tail], after[start:len(after)-tail])...)
	return append(script, marked("  ", before[len(before)-tail:])...)
}

func marked(mark string, lines []string) []string {
	result := make([]string, len(lines))
	for i, line := range lines {
		result[i] = mark + line
	}
	return result
}

func editMiddle(before, after []string) []string {
	if len(before)*len(after) > maxLineProduct {
		return slices.Concat(marked("- ", before), marked("+ ", after))
	}
	// common[i][j] is how many lines before[i:] and after[j:] have in common.
	common := make([][]int, len(before)+1)
	for i := range common {
		common[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if before[i] == after[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var script []string
	i, j := 0, 0
	for i < len(before) && j < len(after) {
		switch {
		case before[i] == after[j]:
			script = append(script, "  "+before[i])
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			script = append(script, "- "+before[i])
			i++
		default:
			script = append(script, "+ "+after[j])
			j++
		}
	}
	return slices.Concat(script, marked("- ", before[i:]), marked("+ ", after[j:]))
}
