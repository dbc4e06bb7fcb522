package main

// The tables, in Markdown.

import (
	"fmt"
	"io"
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
	fmt.Fprintf(to, "Seed %d. In percent: honest peers that were admitted at the first try → after at most %d more; of the limit, what attackers held.\n", seed, mostTries-1)
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
	head := []string{"subnets", "identities in each"}
	for _, v := range variants {
		head = append(head, v.name)
	}
	for _, v := range variants {
		head = append(head, "held, "+v.name)
	}
	rows := [][]string{head}
	for _, story := range s.stories {
		row := []string{"no attack", ""}
		if story.attack != nil {
			row = []string{fmt.Sprint(story.subnets), fmt.Sprint(story.identities)}
		}
		for _, o := range story.outcomes {
			row = append(row, s.attack.denied(o.all()).String())
		}
		for _, o := range story.outcomes {
			row = append(row, fmt.Sprintf("%.0f", 100*o.held))
		}
		rows = append(rows, row)
	}
	fmt.Fprintf(to, "\n%s; the limit is %d %s:\n\n", s.title, s.attack.limit, s.attack.filled)
	return table(to, rows)
}

// writeSpecials writes what each group got.
func writeSpecials(to io.Writer, stories []*story, variants []variant) error {
	head := []string{"attack", "honest peers"}
	for _, v := range variants {
		head = append(head, v.name)
	}
	rows := [][]string{head}
	for _, story := range stories {
		for i, g := range story.groups {
			row := []string{story.title, g.name}
			for _, o := range story.outcomes {
				row = append(row, o.fates[i].served.String())
			}
			rows = append(rows, row)
		}
	}
	fmt.Fprint(to, "\nSpecial cases; admitted with connection and stream:\n\n")
	return table(to, rows)
}
