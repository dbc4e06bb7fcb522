// Command fairness simulates attackers with thousands of identities, in a few subnets or
// in many, and honest peers that come to the same host meanwhile. It shows what the
// honest peers get: on go-libp2p's manager, on this one with its defaults, and on this
// one with WithFairShare. The managers are real, but hosts and time are simulated, so
// that minutes of an attack take a second, and the same seed gives the same output.
//
//	go run ./examples/fairness -seed 1 -svg docs/fairshare.svg
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/weir-p2p/rcmgr/internal/cmdline"
)

// settings are the values of the command line.
type settings struct {
	seed uint64
	svg  string // the file for the plot, "" for none
	show string // "shares" or "room"
}

func main() {
	s, err := settingsFrom(os.Args[1:])
	cmdline.ExitOn("fairness", err)
	if err := run(os.Stdout, os.Stderr, s); err != nil {
		fmt.Fprintln(os.Stderr, "fairness:", err)
		os.Exit(1)
	}
}

// settingsFrom reads the command line.
func settingsFrom(args []string) (settings, error) {
	s := settings{seed: 1, show: "shares"}
	l := cmdline.New("fairness").About(`
Simulates attackers with thousands of identities, in a few subnets or in many,
and shows what honest peers get meanwhile: on go-libp2p's manager, on this one
with its defaults, and on this one with WithFairShare. That takes some minutes.
`)
	l.Seed(&s.seed, "seed", "the `number` from which all random choices follow")
	l.File(&s.svg, "svg", "also draw a plot into this `file`")
	l.Choice(&s.show, "show", "the `option` to show: shares (WithFairShare), or room (WithRoom), with so many attacking subnets that shares do not help", "shares", "room")
	if err := l.Parse(args); err != nil {
		return s, err
	}
	if s.show == "room" && s.svg != "" {
		return s, cmdline.Wrong("svg", s.svg, errors.New("expected with -show shares: room has no plot"))
	}
	return s, cmdline.CheckOutput("svg", s.svg)
}

func run(out, progress io.Writer, s settings) error {
	if s.show == "room" {
		stories := roomStories()
		if err := play(stories, roomVariants, shorter, s.seed, progress); err != nil {
			return err
		}
		return writeRoom(out, stories, roomVariants, s.seed)
	}
	p := newPlan()
	if err := play(p.stories(), variants, usual, s.seed, progress); err != nil {
		return err
	}
	if err := p.write(out, variants, s.seed); err != nil || s.svg == "" {
		return err
	}
	var plot bytes.Buffer
	if err := draw(&plot, p.sweeps[:len(attacks)], variants); err != nil {
		return err
	}
	return os.WriteFile(s.svg, plot.Bytes(), 0o644)
}
