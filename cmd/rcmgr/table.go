package main

// The command "table": a snapshot, once.

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
)

// report is a snapshot with what stands in the way, as JSON. It can be read as a snapshot.
type report struct {
	*rcmgr.Snapshot
	InTheWay   string
	Bottleneck *rcmgr.Bottleneck `json:",omitempty"`
}

// reportOf returns a report of what was found in a whole snapshot.
func reportOf(found, whole *rcmgr.Snapshot) report {
	return report{found, whole.InTheWay(), whole.Bottleneck()}
}

func (a *app) tableCommand() *cobra.Command {
	var find string
	var from int
	var full float64
	c := &cobra.Command{
		Use:   "table SOURCE",
		Short: "Show what stands in the way, all limits, and what is held",
		Long: `Show what stands in the way, all limits with their use, what peers, services
and protocols hold, and what was refused. The tables fit the terminal, or 80
columns without one; in a terminal, what is nearly full stands out.`,
		Example: "  rcmgr table http://127.0.0.1:6060/rcmgr\n  rcmgr table --near 50 node.json\n  rcmgr table --find bitswap node.json",
		Args:    arguments(1, 1, "one source: a page, the file of a snapshot, or - for one on the standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, whole, err := a.found(cmd.Context(), args[0], find, from)
			if err != nil {
				return err
			}
			onlyNear := cmd.Flags().Changed("near")
			uses := s.LimitsNear(full)
			if a.json() {
				if onlyNear {
					return a.writeJSON(uses)
				}
				return a.writeJSON(reportOf(s, whole))
			}
			width := a.width()
			lines := head(whole, -1, a.sentenceWidth())
			tables := sheets(s, find)
			if onlyNear {
				tables = []*sheet{limitSheet(fmt.Sprintf("Limits of which %g %% and more are taken", full), uses)}
				tables[0].empty = "There are none."
			}
			for _, t := range tables {
				lines = append(lines, "", bold.Render(t.heading()))
				lines = append(lines, t.lines(width, 0, 0, -1)...)
			}
			_, err = fmt.Fprintln(a.coloured(), strings.Join(lines, "\n"))
			return err
		},
	}
	findFlags(c, &find, &from)
	c.Flags().Var(ranged[float64]{&full, 0, 100}, "near", "only limits of which at least this `percentage` is used, the fullest first")
	return c
}
