package main

// The command "diff": two snapshots, or two files of limits.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-p2p/rcmgr"
	"github.com/weir-p2p/rcmgr/internal/text"
)

func (a *app) diffCommand() *cobra.Command {
	var m machine
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Compare two snapshots of a node, or two files of limits",
		Long: `Compare two snapshots of a node, each a file or the node's page: what has grown,
which limits have changed, and what was refused in between. Or compare two
files of limits, as they apply on a node with this memory and this many
descriptors.

A difference is no error: the exit code is 0 whether there is one or not.`,
		Example: "  rcmgr diff monday.json http://127.0.0.1:6060/rcmgr\n  rcmgr diff --memory 2GiB --fds 4096 old-limits.json new-limits.json",
		Args:    arguments(2, 2, "two snapshots, or two files of limits, the older one first"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var texts [2][]byte
			limits := 0
			for i, source := range args {
				body, err := a.load(cmd.Context(), source, nil)
				if err != nil {
					return err
				}
				texts[i] = body
				if !isURL(source) && source != "-" && isLimits(body) {
					limits++
					texts[i] = nil
				}
			}
			if limits == 2 {
				return a.diffLimits(cmd.Context(), m.node(), args)
			}
			var s [2]*rcmgr.Snapshot
			for i, body := range texts {
				var err error
				if body == nil {
					continue
				}
				if s[i], err = parse(body); err != nil {
					return fmt.Errorf("%s: %w", nameOf(args[i]), err)
				}
			}
			if name := firstGiven(cmd, machineFlags...); limits == 0 && name != "" {
				return usage("--%s does not go with snapshots: expected two files of limits, or no --%s", name, name)
			}
			if limits == 1 {
				return usage("one of %s and %s is a file of limits, and the other is a snapshot", nameOf(args[0]), nameOf(args[1]))
			}
			if s[1].Taken.Before(s[0].Taken) {
				return usage("%s is older than %s: expected the older snapshot first", nameOf(args[1]), nameOf(args[0]))
			}
			d := s[1].Since(s[0])
			if a.json() {
				return a.writeJSON(&d)
			}
			if _, err := fmt.Fprintf(a.out, "%s later\n\n", d.To.Sub(d.From).Round(time.Millisecond)); err != nil {
				return err
			}
			return a.writeSheet(changeSheet(&d))
		},
	}
	m.flags(c, "; by default half of what this computer has")
	return c
}

// isLimits reports whether a text is a JSON object that is no snapshot.
func isLimits(body []byte) bool {
	var any map[string]json.RawMessage
	if json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &any) != nil {
		return false
	}
	_, hasTime := any["Taken"]
	_, hasScopes := any["Scopes"]
	return !hasTime && !hasScopes
}

// change is a setting that differs between two files of limits.
type change struct{ Place, Before, After string }

func (a *app) diffLimits(ctx context.Context, node rcmgr.NodeLimits, files []string) error {
	plans, err := a.plansOf(ctx, node, files)
	if err != nil {
		return err
	}
	values := func(c rcmgr.ConcreteLimitConfig) (places []string, at map[string]string) {
		at = make(map[string]string)
		for _, s := range c.Settings() {
			places, at[s.Place] = append(places, s.Place), s.Value
		}
		return places, at
	}
	oldPlaces, before := values(plans[0].Limits)
	newPlaces, after := values(plans[1].Limits)
	var all []change
	add := func(place string) {
		was, is := before[place], after[place]
		if was == "" {
			was = "-"
		}
		if is == "" {
			is = "-"
		}
		if was != is {
			all = append(all, change{place, was, is})
		}
	}
	for _, place := range newPlaces {
		add(place)
	}
	for _, place := range oldPlaces {
		if _, ok := after[place]; !ok {
			add(place)
		}
	}
	if a.json() {
		return a.writeJSON(all)
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(a.out, "no limit differs")
		return err
	}
	t := &sheet{name: 30, columns: []column{{"Setting", false, 0}, {"Before", false, 0}, {"After", false, 0}}}
	for _, c := range all {
		before, after := text.Settings(c.Place, c.Before, c.After)
		t.rows = append(t.rows, row{cells: []string{text.Printable(c.Place), before, after}})
	}
	return a.writeSheet(t)
}
