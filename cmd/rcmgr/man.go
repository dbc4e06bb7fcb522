package main

// The manual pages, from the same definitions as the commands.

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func manCommand(root *cobra.Command) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:     "man DIRECTORY",
		Short:   "Write the manual pages, one for each command, into a directory",
		Hidden:  true,
		Args:    arguments(1, 1, "a directory for the pages"),
		Example: "  rcmgr man /usr/local/share/man/man1",
		RunE: func(_ *cobra.Command, args []string) error {
			root.DisableAutoGenTag = true // it has the day on which the pages are made
			pages := []*cobra.Command{root}
			for _, c := range root.Commands() {
				if c.IsAvailableCommand() {
					pages = append(append(pages, c), c.Commands()...)
				}
			}
			type page struct {
				file string
				text []byte
			}
			var all []page
			for _, c := range pages {
				var text bytes.Buffer
				never := time.Unix(0, 0)
				if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "rcmgr", Manual: "rcmgr", Date: &never}, &text); err != nil {
					return err
				}
				file := filepath.Join(args[0], strings.ReplaceAll(c.CommandPath(), " ", "-")+".1")
				all = append(all, page{file, text.Bytes()})
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return usage("%w", err)
			}
			for _, p := range all {
				if err := checkOutput(p.file, force); err != nil {
					return err
				}
			}
			for _, p := range all {
				if err := writeFile(p.file, p.text, force); err != nil {
					return err
				}
			}
			return nil
		},
	}
	forceFlag(c, &force)
	return c
}
