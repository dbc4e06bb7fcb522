package rcmgr

// How a manager is made from limits and options, what the log tells of it, and how it is
// closed.

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// New makes a manager with the given limits. With nil they are DefaultLimits and the limits
// of libp2p's services, for what this process may use of its machine (ThisMachine). Limits
// are read when a scope is made, and when SetLimits or Refresh says so. Close ends it.
func New(limits Limiter, opts ...Option) (*Manager, error) {
	cfg := defaultConfig()
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("rcmgr: option %d is nil", i)
		}
		if err := opt(&cfg); err != nil {
			return nil, fmt.Errorf("rcmgr: %w", err)
		}
	}
	if limits == nil {
		limits = defaultLimiter()
	}
	book, err := newLimitBook(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if cfg.traced() {
		cfg.stripes = 1 // one order of events, with exact totals
	}
	m := &Manager{
		engine: engine{
			seed:      maphash.MakeSeed(),
			secret:    ip.Hash{A: rand.Uint64(), B: rand.Uint64()},
			stripes:   make([]stripe, cfg.stripes),
			admission: cfg.admission,
			newcomers: cfg.newcomers,
			fair:      newFairShare(cfg.fair),
			allowlist: newAllowlist(cfg.allowlisted),
			reporter:  guarded(cfg.reporter),
			noting:    cfg.refusalLog > 0,
			bugLog:    rate.Sometimes{Interval: 10 * time.Second},
		},
		options: cfg,
		started: time.Now(),
		stop:    make(chan struct{}),
	}
	m.observed.bits.Store(uint32(cfg.observed))
	gates, err := m.makeGates(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.gates.Store(gates)
	if m.trace, err = newTracer(cfg.tracePath, cfg.reporters, limits); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.pressure = newPressure(cfg.pressure)
	m.leaks = newLeakFinder(cfg.leaks, m.reportBug)
	m.limits.Store(book)
	m.classes.putInForce(book)
	m.build()
	if cfg.measured() {
		live.add(m)
	}
	m.workers.Go(func() { m.workUntilClosed(m.jobs()) })
	m.logStart()
	m.logUnreachable(book)
	return m, nil
}

// logStart tells in one line what is on.
func (m *Manager) logStart() {
	gates, _ := m.options.gateConfig(m.limits.Load().limiter) // of which gates were made
	rates := gates.rate.describe()
	if caller := m.gate().caller; caller != nil {
		rates = []string{"as WithConnRateLimiters says"}
		if caller.limiter == nil {
			rates = []string{"off"}
		}
	}
	log.Info("resource manager started", append([]any{"stripes", len(m.stripes), "admission", m.admission,
		"newcomers_quarter", m.newcomers, "fair_share", m.options.fair, "observe_only", m.observed.load(), "connections_per_subnet", gates.subnets.describe(),
		"connect_rates", rates, "outbound_gates", gates.outbound,
		"allowlist_entries", len(m.options.allowlisted), "traced", m.trace != nil}, m.limits.Load().startAttrs()...)...)
}

// NewResourceManager is New as go-libp2p's own package spells it.
func NewResourceManager(limits Limiter, opts ...Option) (network.ResourceManager, error) {
	m, err := New(limits, opts...)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return m, nil
}

// Close ends the manager: nothing more is admitted, and the error then matches
// network.ErrResourceScopeClosed. What is open can still be released; scopes go with the
// last that they hold, but for those whose limit was set by hand. A trace is written to its
// end. Again, it does nothing. It always returns nil.
func (m *Manager) Close() error {
	m.closeOnce.Do(func() {
		m.ended.Store(true)
		close(m.stop)
		m.workers.Wait()
		m.inOneCut(func() {
			for i := range m.stripes {
				m.stripes[i].closed, m.stripes[i].plain = true, false
			}
		})
		if m.noting {
			m.logRefusals()
		}
		live.remove(m)
		m.trace.close()
		m.reap() // for the last time; see stripe.sweep
	})
	return nil
}

func defaultConfig() config {
	return config{
		stripes:    defaultStripes(),
		newcomers:  true,
		refusalLog: 10 * time.Second,
		gates:      defaultGateConfig(),
	}
}
