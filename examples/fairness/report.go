package main

// The tables, in Markdown.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// percent returns n in percent of of, or 0 if of is 0.
func percent(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}

func (s share) percentAtFirst() float64 { return percent(s.atFirst, s.wanted) }

// String returns the percentages of peers that got it at the first try, and in the end.
func (s share) String() string {
	return fmt.Sprintf("%.0f → %.0f", s.percentAtFirst(), percent(s.inTheEnd, s.wanted))
}

// write writes all tables.
func (p *plan) write(to io.Writer, variants []variant, seed uint64) error {
	fmt.Fprintf(to, `Seed %d. All numbers are percentages. Served are honest peers that were admitted
at the first try → after at most %d more; held is the part of the limit that
attackers had. "fair share" is WithFairShare(), "system too" covers the system
scope, too; ours has neither.
`, seed, mostTries-1)
	for _, s := range p.sweeps {
		if err := s.write(to, variants); err != nil {
			return err
		}
	}
	return writeSpecials(to, p.specials, variants)
}

// table writes rows of cells; the first row is the head.
func table(to io.Writer, rows [][]string) error {
	out := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	for i, row := range rows {
		fmt.Fprintf(out, "| %s\t|\n", strings.Join(row, "\t| "))
		if i == 0 {
			fmt.Fprintf(out, "|---%s\t|\n", strings.Repeat("\t|---", len(row)-1))
		}
	}
	return out.Flush()
}

// write writes what honest peers got of the attacked resource, and what attackers held.
func (s *series) write(to io.Writer, variants []variant) error {
	head := []string{"subnets", "in each"}
	for _, v := range variants {
		head = append(head, v.column())
	}
	served, held := [][]string{head}, [][]string{head}
	for _, story := range s.stories {
		row := []string{"no attack", ""}
		if story.attack != nil {
			row = []string{fmt.Sprint(story.subnets), fmt.Sprint(story.identities)}
		}
		some := slices.Clone(row)
		for _, o := range story.outcomes {
			row = append(row, s.attack.denied(o.all()).String())
			some = append(some, fmt.Sprintf("%.0f", 100*o.held))
		}
		served, held = append(served, row), append(held, some)
	}
	fmt.Fprintf(to, "\n%s.\nThe limit is %d %s.\n\nServed:\n\n", s.title, s.attack.limit, s.attack.filled)
	if err := table(to, served); err != nil {
		return err
	}
	fmt.Fprint(to, "\nHeld:\n\n")
	return table(to, held)
}

// writeSpecials writes what each group got.
func writeSpecials(to io.Writer, stories []*story, variants []variant) error {
	head := []string{"attack, and honest peers"}
	for _, v := range variants {
		head = append(head, v.column())
	}
	rows := [][]string{head}
	for _, story := range stories {
		rows = append(rows, append([]string{story.title + ":"}, make([]string, len(variants))...))
		for i, g := range story.groups {
			row := []string{g.name}
			for _, o := range story.outcomes {
				row = append(row, o.fates[i].served.String())
			}
			rows = append(rows, row)
		}
	}
	fmt.Fprint(to, "\nSpecial cases; served with connection and stream:\n\n")
	return table(to, rows)
}
