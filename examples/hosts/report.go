package main

// The share of managers in profiles, and the table.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// managers matches the functions of both managers in a profile, by their packages.
const managers = `weir-p2p/rcmgr\.|/host/resource-manager\.`

var shareOfAll = regexp.MustCompile(`Showing nodes accounting for \S+, ([0-9.]+)% of`)

// shareOfManager profiles what do does, and returns the share of the samples in which a
// function of a manager, or one that it has called, was running.
func shareOfManager(do func() error) (float64, error) {
	profile, err := os.CreateTemp("", "hosts")
	if err != nil {
		return 0, err
	}
	defer os.Remove(profile.Name())
	if err := pprof.StartCPUProfile(profile); err != nil {
		return 0, err
	}
	err = do()
	pprof.StopCPUProfile()
	if err := errors.Join(err, profile.Close()); err != nil {
		return 0, err
	}
	text, err := exec.Command("go", "tool", "pprof", "-top", "-nodefraction=0", "-focus="+managers, profile.Name()).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("go tool pprof: %w\n%s", err, text)
	}
	found := shareOfAll.FindSubmatch(text)
	if found == nil {
		return 0, nil // no sample is in such a function
	}
	share, err := strconv.ParseFloat(string(found[1]), 64)
	return share / 100, err
}

// print writes a table for each load and transport.
func (r results) print(w io.Writer, s settings) error {
	for l, load := range loads {
		for over, transport := range transports {
			fmt.Fprintf(w, "a %s over %s: processor time on both hosts, median of %d rounds\n\n", load.name, transport.name, s.rounds)
			t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
			fmt.Fprint(t, "  manager\ttime\ttimes that without one\t")
			if s.profile {
				fmt.Fprint(t, "in the manager")
			}
			fmt.Fprintln(t)
			without := r[over][noManager].times[l]
			for k, kind := range kinds {
				times := r[over][k].times[l]
				fmt.Fprintf(t, "  %s\t%v\t", kind.name, median(times).Round(100*time.Nanosecond))
				if k != noManager {
					ratios := make([]float64, len(times))
					for i, took := range times {
						ratios[i] = float64(took) / float64(without[i])
					}
					fmt.Fprintf(t, "%.2f (%.2f to %.2f)", median(ratios), slices.Min(ratios), slices.Max(ratios))
				}
				fmt.Fprint(t, "\t")
				if s.profile {
					fmt.Fprintf(t, "%.1f %%", 100*r[over][k].share[l])
				}
				fmt.Fprintln(t)
			}
			if err := t.Flush(); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
	}
	return nil
}
