package rcmgr

// Checks of a whole configuration before it is used.

import (
	"fmt"
	"slices"
	"strings"
)

// negativeRefuses has, for each limit, what a negative number refuses, as zero does.
var negativeRefuses = [numDims]string{
	dimMemory:     "every reservation of memory",
	dimStreamsIn:  "every inbound stream",
	dimStreamsOut: "every outbound stream",
	dimStreams:    "every stream",
	dimConnsIn:    "every inbound connection",
	dimConnsOut:   "every outbound connection",
	dimConns:      "every connection",
	dimFD:         "every connection that takes a file descriptor",
}

func afterNegative(d dim) string { return "it refuses " + negativeRefuses[d] }

// refusesAll is what a negative number means that is no word of limits.
const refusesAll = "it refuses everything"

// whatThen returns what happens because a fault at a path is passed over, by what strictjson or
// plainVal says of it.
func whatThen(then, path string) string {
	if then == refusesAll {
		then = "it refuses " + negativeRefuses[slices.Index(limitNames[:], path[strings.LastIndex(path, ".")+1:])]
	}
	return then
}

// accept returns an error if no manager can have these limits, or if strict is set and something
// is wrong with them or with the text that they were read from. It logs what is passed over,
// unless it has been logged when the limits were read.
func (cfg *ConcreteLimitConfig) accept(strict bool) error {
	if cfg.passedOver == nil {
		return cfg.check().orPassedOver(strict)
	}
	if strict {
		return cfg.passedOver
	}
	return nil
}

// negative returns the first dimension with a negative number, or numDims if there is none.
func (a *amounts) negative() dim {
	for d, n := range a {
		if n < 0 {
			return dim(d)
		}
	}
	return numDims
}

// withoutNegatives returns cfg, or a copy in which negative limits are zero, which admits nothing,
// either.
func (cfg *ConcreteLimitConfig) withoutNegatives() *ConcreteLimitConfig {
	negative := false
	cfg.limits.each(func(_ string, l BaseLimit) {
		limit := limitsOf(l)
		negative = negative || limit.negative() < numDims
	})
	if !negative {
		return cfg // it is never written to
	}
	plain := *cfg
	plain.limits = convert(cfg.limits, func(l BaseLimit) BaseLimit {
		limit := limitsOf(l)
		out := limit.orZero().baseLimit()
		out.Rates = l.Rates
		return out
	})
	return &plain
}

// orZero returns a with zero in place of negative numbers.
func (a amounts) orZero() *amounts {
	for d := range a {
		a[d] = max(0, a[d])
	}
	return &a
}

// check returns all errors in the limits, wherever they came from.
func (cfg *ConcreteLimitConfig) check() *configErrors {
	errs := new(configErrors)
	cfg.limits.each(func(place string, l BaseLimit) {
		limit, unnamed := limitsOf(l), amounts{}
		if l, ok := cfg.limits.unnamedOf(place); ok {
			unnamed = limitsOf(l)
		}
		for _, d := range limitOrder {
			if limit[d] < 0 && limit[d] != unnamed[d] { // or else the limit of the unnamed scopes is wrong
				errs.add(&ConfigError{Path: place + "." + limitNames[d], then: afterNegative(d),
					Err: fmt.Errorf("is %d, it must not be negative", limit[d])})
			}
		}
	})
	cfg.limits.each(func(place string, l BaseLimit) {
		if under, ok := cfg.limits.unnamedOf(place); !ok || l.Rates != under.Rates {
			errs.join(l.Rates.check(place).err())
		}
	})
	cfg.limits.Costs.check(errs, cfg.limits.Conn.Memory, cfg.limits.Stream.Memory)
	_, err := cfg.gateConfig(defaultGateConfig())
	errs.join(err)
	return errs
}

// checkTransient adds an error for each limit of the transient scope that is above that
// of the system scope, because everything in the transient scope counts in the system
// scope, too. It does so only where both limits were written, and one of them in overrides. A
// written limit that contradicts a computed one, which differs from machine to machine,
// is not an error but one of Warnings. A system scope that admits nothing is deliberate:
// it leaves everything to the allowlist.
func (cfg *ConcreteLimitConfig) checkTransient(errs *configErrors, overrides *PartialLimitConfig) {
	transient, system := limitsOf(cfg.limits.Transient), limitsOf(cfg.limits.System)
	fromTransient, fromSystem := byDim(cfg.origins.Transient.quantities), byDim(cfg.origins.System.quantities)
	inTransient, inSystem := limitsOf(overrides.Transient.Build(BaseLimit{})), limitsOf(overrides.System.Build(BaseLimit{}))
	for _, d := range limitOrder {
		inner, outer := "Transient."+limitNames[d], "System."+limitNames[d]
		switch {
		case isUnlimited(d, transient[d]) || transient[d] <= system[d] || system[d] <= 0:
		case min(fromTransient[d], fromSystem[d]) < OriginOverride:
		case inTransient[d] > 0:
			errs.add(&ConfigError{Path: inner, also: []string{outer}, then: "it can never be reached", warned: true, Err: fmt.Errorf(
				"is %d, above %s, which is %d: everything transient counts there, too", transient[d], outer, system[d])})
		case inSystem[d] > 0:
			errs.add(&ConfigError{Path: outer, then: "it can never be reached", warned: true, Err: fmt.Errorf(
				"is %d, below %s, which is %d: everything transient counts there, too", system[d], inner, transient[d])})
		}
	}
}
