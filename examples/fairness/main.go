// Command fairness simulates attackers with thousands of identities, in a few
// subnets or in many, and honest peers who come to the same host meanwhile. It says
// what the honest ones get: on go-libp2p's manager, on this one as it comes, and on
// this one with WithFairShare. The managers are real; hosts and time are not, so
// that minutes of an attack take a second, and the same seed gives the same output.
//
//	go run ./examples/fairness -seed 1 -svg docs/fairshare.svg
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	seed := flag.Uint64("seed", 1, "`number` that decides all that chance does")
	svg := flag.String("svg", "", "also draw a plot into this `file`")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "fairness: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if err := run(os.Stdout, os.Stderr, *seed, *svg); err != nil {
		fmt.Fprintln(os.Stderr, "fairness:", err)
		os.Exit(1)
	}
}

func run(out, progress io.Writer, seed uint64, svg string) error {
	p := newPlan()
	if err := play(p.stories(), variants, usual, seed, progress); err != nil {
		return err
	}
	if err := p.write(out, variants, seed); err != nil || svg == "" {
		return err
	}
	var plot bytes.Buffer
	if err := draw(&plot, p.sweeps[:len(attacks)], variants); err != nil {
		return err
	}
	return os.WriteFile(svg, plot.Bytes(), 0o644)
}
