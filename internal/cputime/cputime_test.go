package cputime

import "testing"

func TestComputingTakesProcessorTime(t *testing.T) {
	if !Known {
		t.Skip("not measured here")
	}
	for before := Used(); Used() == before; { // ends when the clock of the system ticks
	}
	if Used() <= 0 {
		t.Error("a process that computes has used nothing")
	}
}
