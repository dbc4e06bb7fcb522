package rcmgr

// Making a manager from limits and options, what it logs when it starts, and closing it.

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/time/rate"

	"github.com/weir-p2p/rcmgr/internal/ip"
)

// New returns a manager with the given limits. If limits is nil, the manager has the
// default limits and those of libp2p's own services, scaled to what this process may
// use of its machine (see ThisMachine). The manager reads the limits of a scope when
// it makes the scope, and reads all limits again when SetLimits or Refresh is called.
//
// New returns an error if an option or a limit is invalid. A mistake that go-libp2p's own manager
// ignores, in limits or in an option of the same name, is not an error: New logs it, with its
// place and effect (see WithStrictConfig). The manager has a goroutine of its own, so call Close
// when the manager is no longer needed.
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
	if err := cfg.accept(); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	book, err := newLimitBook(limits, cfg.strict, nil)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if limits == nil {
		limits = book.limiter
	}
	switch {
	case cfg.traced():
		cfg.stripes = 1 // one order of events, with exact totals
	case cfg.stripes == 0:
		cfg.stripes = stripesFor(runtime.GOMAXPROCS(0), book)
	}
	m := &Manager{
		engine: engine{
			seed:      maphash.MakeSeed(),
			secret:    ip.Hash{A: rand.Uint64(), B: rand.Uint64()},
			stripes:   make([]stripe, cfg.stripes),
			admission: cfg.admission,
			newcomers: cfg.newcomers,
			allowlist: newAllowlist(cfg.allowlisted),
			reporter:  guarded(cfg.reporter),
			noting:    cfg.refusalLog > 0,
			bugLog:    rate.Sometimes{Interval: 10 * time.Second},
			bugsTo:    log,
		},
		options: cfg, writeRefusals: cfg.writeRefusals,
		started: time.Now(),
		stop:    make(chan struct{}),
	}
	m.owner = guardedOwners(cfg.owner, m.reportBug)
	m.fair = newFairShare(cfg.fair, m.owner)
	m.allowlist.strict = cfg.strict
	m.observed.bits.Store(uint32(cfg.observed))
	gates, err := m.makeGates(limits)
	if err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.gates.Store(gates)
	if cfg.resolver != nil {
		m.names = newHostNames(cfg.resolver, cfg.namesEvery, m.allowlist)
		m.allowlist.names = m.names
	}
	if err = m.options.listNames(m.allowlist); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	if m.trace, err = newTracer(cfg.tracePath, cfg.reporters, limits); err != nil {
		return nil, fmt.Errorf("rcmgr: %w", err)
	}
	m.pressure = newPressure(cfg.pressure)
	if m.earmarks = cfg.earmarks; m.earmarks != nil {
		m.earmarks.ask()
	}
	m.leaks = newLeakFinder(cfg.leaks, m.reportBug)
	if m.room = m.newRoom(cfg.room); m.room != nil {
		m.alarm = newAlarm()
		if m.pressure != nil {
			m.pressure.freeing = &freeing{alarm: m.alarm, look: make(chan struct{}, 1), now: m.room.Now}
		}
	}
	m.limits.Store(book)
	m.classes.putInForce(book)
	m.build()
	if cfg.measured() {
		live.add(m)
	}
	jobs := m.jobs()
	m.workers.Go(func() { m.workUntilClosed(jobs) })
	if m.room != nil && !cfg.room.ByHand {
		m.workers.Go(m.makeRoom)
	}
	m.names.begin()
	m.logStart()
	m.logUnreachable(book)
	m.logWithoutGates(book)
	return m, nil
}

// stripesFor returns the number of stripes that a manager has by default: 16 for each processor,
// rounded up to a power of two. Two goroutines that are in one stripe at the same time wait for
// each other, and then often meet again in the next. But the more stripes share a limit, the
// smaller is the credit that each draws ahead. So there are fewer, down to four for each processor,
// if a limit of a shared scope would otherwise be too small for credit.
func stripesFor(processors int, limits *limitBook) int {
	least := 1
	for least < 4*processors && least < maxStripes {
		least *= 2
	}
	endsCredit := func(n int) bool {
		for _, k := range []Kind{KindSystem, KindTransient, KindService, KindProtocol} {
			for _, limit := range limits.kinds[k].unnamed {
				if batchOf(limit, n) == 0 && batchOf(limit, least) > 0 {
					return true
				}
			}
		}
		return false
	}
	n := min(4*least, maxStripes)
	for n > least && endsCredit(n) {
		n /= 2
	}
	return n
}

// logStart logs in one line which features are on.
func (m *Manager) logStart() {
	gates, _ := m.options.gateConfig(m.limits.Load().limiter) // what New made the gates from
	attrs := []any{"stripes", len(m.stripes), "admission", m.admission,
		"newcomers_quarter", m.newcomers, "fair_share", m.options.fair, "observe_only", m.observed.load()}
	if m.earmarks != nil {
		attrs = append(attrs, "earmarks", m.earmarks.names(0))
	}
	attrs = append(attrs, m.options.attrs()...)
	attrs = append(attrs, gates.attrs(m.options.callerRates)...)
	attrs = append(attrs, "allowlist_entries", len(m.options.allowlisted)+len(m.options.names), "traced", m.trace != nil)
	log.Info("resource manager started", append(attrs, limitAttrs(m.limits.Load())...)...)
}

// logWithoutGates warns if no subnet is limited because the limits are InfiniteLimits alone,
// and no option says anything about the gates. Under the same limits go-libp2p's own manager
// keeps its limits for each address, so a program that moves over may not expect it.
func (m *Manager) logWithoutGates(b *limitBook) {
	if b.own != nil && b.own.ungated && len(m.gateOrigins(b)) == 0 {
		log.Warn("InfiniteLimits alone do not limit subnets: go-libp2p's own manager admits 8 connections an address under them. Set Gates in the limits, or WithGates, to limit subnets here, too")
	}
}

// NewResourceManager is New with the name and the results of go-libp2p's own function. What it
// returns is a *Manager.
func NewResourceManager(limits Limiter, opts ...Option) (network.ResourceManager, error) {
	m, err := New(limits, opts...)
	if err != nil {
		return nil, err // not a nil pointer in an interface
	}
	return m, nil
}

// Close ends the manager. Every later request fails with an error that matches
// network.ErrResourceScopeClosed. Connections, streams and memory that are still held
// can be released as before. Each scope is removed when it holds nothing any more, except
// scopes whose limit was set by SetLimit. If the manager writes a trace, Close writes the
// rest of it. Close waits for calls of listeners and reporters that are running, so it must
// not be called in one. Closing a manager again does nothing, but waits for a Close that is
// running. Close always returns nil.
func (m *Manager) Close() error {
	m.closeOnce.Do(func() {
		m.ended.Store(true)
		close(m.stop)
		m.names.end()
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
		m.reap() // the last periodic collection; from now on each release collects, see stripe.sweep
	})
	return nil
}

func defaultConfig() config {
	return config{
		newcomers:      true,
		refusalLog:     10 * time.Second,
		defaultSubnets: defaultSubnetConfig(),
	}
}
