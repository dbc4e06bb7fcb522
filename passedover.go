package rcmgr

// Faults in options that go-libp2p's own manager passes over. A node that starts on that manager
// has to start on this one, so they are logged, with what happens in spite of them. A program may
// demand errors in their place.

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// WithStrictConfig makes New, SetLimits, Refresh and the methods of the allowlist return errors
// for mistakes that they otherwise only log, because go-libp2p's own manager ignores them:
//
//   - negative limits, which admit nothing
//   - a Limiter that NewLimiterFromJSON or NewDefaultLimiterFromJSON has read from a text with
//     something that ReadLimits would refuse
//   - entries of WithAllowlistedMultiaddrs and Allowlist.Add that go through a relay, or have
//     two addresses, networks or peers
//   - negative numbers, impossible prefix lengths, and networks of the other family, in
//     WithLimitPerSubnet and WithNetworkPrefixLimit
//   - rates and bursts of WithConnRateLimiters that are negative, infinite or not a number, and
//     impossible prefix lengths
//   - a file of WithTrace that cannot be opened
//
// The error lists everything that is wrong. Without the option, a node that starts on
// go-libp2p's manager starts on this one.
func WithStrictConfig() Option {
	return func(c *config) error {
		c.strict = true
		return nil
	}
}

// accept returns an error if the options have faults and are to be strict. Otherwise it logs the
// faults.
func (c *config) accept() error {
	faults := slices.Concat(c.faults, c.repairSubnets(), c.callerRates.faults(), c.repairTrace())
	var errs []error
	for _, f := range faults {
		if c.strict {
			errs = append(errs, f.err)
		} else {
			log.Error(f.String())
		}
	}
	return errors.Join(errs...)
}

// repairTrace leaves out a trace file that cannot be opened.
func (c *config) repairTrace() []fault {
	if c.tracePath == "" {
		return nil
	}
	file, err := os.OpenFile(c.tracePath, os.O_CREATE|os.O_WRONLY, 0o666)
	if err == nil {
		file.Close()
		return nil
	}
	c.tracePath = ""
	return []fault{{fmt.Errorf("trace: %w", err), "there is no trace file"}}
}
