package main

// The friend: an allowlisted peer that is polite and impatient.

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

// friend pings and fetches all the time, and connects again twice a second, by TCP and
// QUIC alternately. A friend behind a relay connects before the attack and stays.
type friend struct {
	id  peer.ID
	key crypto.PrivKey
	ip  net.IP

	mu    sync.Mutex
	deeds [numDeeds]tally
}

// A deed is one of the things that the friend does.
type deed uint8

const (
	deedConnect deed = iota
	deedPing
	deedFetch
	numDeeds
)

func (d deed) String() string { return [numDeeds]string{"connect", "ping", "fetch"}[d] }

// tally is how often a deed was done, and how long each time took.
type tally struct {
	took   []time.Duration
	failed int
	last   error // the last failure
}

func newFriend(ip net.IP) (*friend, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	return &friend{id: id, key: key, ip: ip}, err
}

// run visits until ctx ends, and calls arrived after the first attempt to connect.
func (f *friend) run(ctx context.Context, v *victim, arrived func()) {
	for i := 0; ctx.Err() == nil; i++ {
		f.visit(ctx, v, road(i%int(numRoads)), arrived)
		pause(ctx, breath)
	}
	arrived()
}

// visit connects, stays for a while, and disconnects. It ends early when a deed fails.
func (f *friend) visit(ctx context.Context, v *victim, by road, arrived func()) {
	to, stay, more := v.info(by), time.Second/2, []libp2p.Option(nil)
	if v.relayed != nil {
		by, to, stay, more = byTCP, *v.relayed, time.Hour, []libp2p.Option{libp2p.EnableRelay()}
	}
	h, err := newHost(f.key, f.ip, by, more...)
	if err != nil {
		f.count(deedConnect, 0, err)
		return
	}
	defer h.Close()
	ok := f.do(ctx, deedConnect, func(ctx context.Context) error { return connect(ctx, h, to) })
	arrived()
	if !ok {
		return
	}
	for end := time.Now().Add(stay); time.Now().Before(end) && pause(ctx, breath); {
		if !f.do(ctx, deedPing, func(ctx context.Context) error { return pingOnce(ctx, h, v.host.ID()) }) ||
			!f.do(ctx, deedFetch, func(ctx context.Context) error { return fetchOnce(ctx, h, v.host.ID()) }) {
			return
		}
	}
}

// do does a deed, times it and counts it. A deed that the end of the attack cuts short
// does not count.
func (f *friend) do(ctx context.Context, d deed, do func(context.Context) error) bool {
	start := time.Now()
	deedCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := do(deedCtx)
	if ctx.Err() == nil {
		f.count(d, time.Since(start), err)
	}
	return err == nil
}

func (f *friend) count(d deed, took time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &f.deeds[d]
	if err != nil {
		t.failed++
		t.last = err
		return
	}
	t.took = append(t.took, took)
}

// tallies returns the tallies so far.
func (f *friend) tallies() [numDeeds]tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.deeds
	for i := range all {
		all[i].took = slices.Clone(all[i].took)
	}
	return all
}

// served returns the number of deeds that succeeded.
func (f *friend) served() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, t := range f.deeds {
		n += len(t.took)
	}
	return n
}

// line returns a summary of the friend's deeds, for the progress bar.
func (f *friend) line() string {
	n, failed := f.served(), 0
	for _, t := range f.tallies() {
		failed += t.failed
	}
	return fmt.Sprintf("friend served %d of %d", n, n+failed)
}

func pingOnce(ctx context.Context, h host.Host, p peer.ID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case r := <-ping.Ping(asConnected(ctx), h, p):
		return r.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}

func fetchOnce(ctx context.Context, h host.Host, p peer.ID) error {
	const size = 32 * kib
	s, err := h.NewStream(asConnected(ctx), p, fetchService.protocol)
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if err := ask(s, size); err != nil {
		return err
	}
	return receive(s, size)
}
