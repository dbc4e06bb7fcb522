package rcmgr

// Checks of a whole configuration before it is used.

import (
	"fmt"
)

// valid returns an error of everything that is wrong with the configuration, or nil if nothing is.
func (cfg *ConcreteLimitConfig) valid() error { return cfg.check().err() }

// check returns all errors in the limits, wherever they came from.
func (cfg *ConcreteLimitConfig) check() *configErrors {
	errs := new(configErrors)
	cfg.limits.each(func(place string, l BaseLimit) {
		limit := limitsOf(l)
		for _, d := range limitOrder {
			if limit[d] < 0 {
				errs.addf(place+"."+limitNames[d], "is %d, it must not be negative", limit[d])
			}
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
	fromTransient, fromSystem := byDim(cfg.origins.Transient), byDim(cfg.origins.System)
	inTransient, inSystem := limitsOf(overrides.Transient.Build(BaseLimit{})), limitsOf(overrides.System.Build(BaseLimit{}))
	for _, d := range limitOrder {
		inner, outer := "Transient."+limitNames[d], "System."+limitNames[d]
		switch {
		case isUnlimited(d, transient[d]) || transient[d] <= system[d] || system[d] <= 0:
		case min(fromTransient[d], fromSystem[d]) < OriginOverride:
		case inTransient[d] > 0:
			errs.add(&ConfigError{Path: inner, also: []string{outer}, Err: fmt.Errorf(
				"is %d, above %s, which is %d: everything transient counts there, too", transient[d], outer, system[d])})
		case inSystem[d] > 0:
			errs.addf(outer, "is %d, below %s, which is %d: everything transient counts there, too", system[d], inner, transient[d])
		}
	}
}
