package main

// A thin layer over the victim's manager, the same for all managers. It counts what is
// refused to the crowd, by the kind of scope that refused, and what is refused to guests.
// Guests see only that a stream is reset or a connection closed, which may have other
// reasons. It also has the connections that the host has not closed in the end.

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/weir-p2p/rcmgr"
)

type observer struct {
	network.ResourceManager

	mu        sync.Mutex
	crowd     map[string]int // refusals by their description, see why
	guests    map[int]int    // refusals by group
	groups    map[peer.ID]int
	streams   streamCounts     // of the crowd
	attackers map[peer.ID]bool // that have come
	open      map[network.ConnManagementScope]struct{}
}

func newObserver(m network.ResourceManager) *observer {
	return &observer{ResourceManager: m, crowd: map[string]int{}, guests: map[int]int{},
		groups: map[peer.ID]int{}, attackers: map[peer.ID]bool{}, open: map[network.ConnManagementScope]struct{}{}}
}

// Unwrap returns the manager that is observed.
func (o *observer) Unwrap() network.ResourceManager { return o.ResourceManager }

// refused returns the refusals so far, to the crowd and to guests.
func (o *observer) refused() (crowd map[string]int, guests map[int]int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.crowd), maps.Clone(o.guests)
}

// note counts err if it is a refusal. An operation on a scope that is closed because its
// connection has ended is not refused.
func (o *observer) note(dir network.Direction, group int, err error) {
	if err == nil || dir != network.DirInbound || errors.Is(err, network.ErrResourceScopeClosed) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if group >= 0 {
		o.guests[group]++
	} else {
		o.crowd[why(err)]++
	}
}

// why returns the kind of scope that refused, what it refused, and the cause if that was
// not a limit: "transient, inbound stream", "process, inbound connection,
// memory-pressure". Both managers name the scope in the text of the error; only ours has
// the cause.
func why(err error) string {
	scope, what, ok := strings.Cut(err.Error(), ": cannot reserve ")
	if !ok {
		return "a gate"
	}
	scope = scope[strings.LastIndex(scope, ": ")+1:]
	kind, _, _ := strings.Cut(strings.TrimSpace(scope), ":")
	what, _, _ = strings.Cut(what, ":")
	text := kind + ", " + what
	var refusal *rcmgr.LimitError
	if errors.As(err, &refusal) && refusal.Cause() != rcmgr.CauseLimit {
		text += ", " + refusal.Cause().String()
	}
	return text
}

func (o *observer) OpenConnection(dir network.Direction, usefd bool, endpoint multiaddr.Multiaddr) (network.ConnManagementScope, error) {
	group := -1
	if ip, err := manet.ToIP(endpoint); err == nil {
		group = groupAt(ip)
	}
	s, err := o.ResourceManager.OpenConnection(dir, usefd, endpoint)
	if err != nil {
		o.note(dir, group, err)
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[s] = struct{}{}
	return &observedConn{ConnManagementScope: s, o: o, dir: dir, group: group}, nil
}

func (o *observer) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	before := time.Now()
	s, err := o.ResourceManager.OpenStream(p, dir)
	o.mu.Lock()
	group, known := o.groups[p]
	o.mu.Unlock()
	if !known {
		group = -1
	}
	o.countStream(p, dir, before, err)
	if err != nil {
		o.note(dir, group, err)
	}
	return s, err
}

// closeForgotten closes the connections that the host has not closed, and returns how
// many. go-libp2p v0.51.0 drops a connection that its peer closes right after the
// handshake without closing its scope, which is not the manager's mistake.
func (o *observer) closeForgotten() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.open)
	for s := range o.open {
		s.Done()
	}
	clear(o.open)
	return n
}

type observedConn struct {
	network.ConnManagementScope
	o     *observer
	dir   network.Direction
	group int
}

// Unwrap returns the scope itself, by which a manager that makes room finds the connection.
func (c *observedConn) Unwrap() network.ResourceScope { return c.ConnManagementScope }

func (c *observedConn) SetPeer(p peer.ID) error {
	c.o.mu.Lock()
	if c.group >= 0 {
		c.o.groups[p] = c.group
	} else if c.dir == network.DirInbound {
		c.o.attackers[p] = true
	}
	c.o.mu.Unlock()
	err := c.ConnManagementScope.SetPeer(p)
	c.o.note(c.dir, c.group, err)
	return err
}

func (c *observedConn) Done() {
	c.ConnManagementScope.Done()
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	delete(c.o.open, c.ConnManagementScope)
}
