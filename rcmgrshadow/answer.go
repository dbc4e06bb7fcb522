package rcmgrshadow

// What a manager says to one call, in a form that does not depend on whose it is.

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	upstream "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr"
)

// call is one call, as far as the explanation of a difference asks for it.
type call struct {
	name     string
	dir      network.Direction
	usefd    bool
	endpoint multiaddr.Multiaddr
	peer     peer.ID
	to       string // the peer, protocol or service of a move or view
	size     int64
	prio     uint8

	opens, moves, reserves bool
	named                  bool // to is the name of a protocol or service
}

// class is what kind of answer a manager gave.
type class uint8

const (
	admitted class = iota
	limitedByScope
	limitedByGate
	scopeClosed
	senseless // the call makes no sense to the manager
)

// answer is what a manager said to one call.
type answer struct {
	class class
	scope string // that refused; without the numbers of connections, streams and spans
	what  string // that there is too little of: "memory", "inbound stream", …; "subnet" or "rate" at a gate
	ours  *rcmgr.LimitError
	err   error
}

func (a answer) String() string {
	if a.err == nil {
		return "admitted"
	}
	return a.err.Error()
}

// like reports whether two answers are the same but for their texts.
func (a answer) like(b answer) bool {
	return a.class == b.class && a.scope == b.scope && a.what == b.what
}

// numbered is the part of a scope's name that the managers count each for itself.
var numbered = regexp.MustCompile(`^(conn|stream)-\d+|(\.span)-\d+`)

func withoutNumbers(name string) string {
	if !strings.Contains(name, "-") { // most have none
		return name
	}
	return numbered.ReplaceAllString(name, "$1$2")
}

func read(err error) answer {
	a := answer{err: err}
	var tooMany *upstream.ErrStreamOrConnLimitExceeded
	switch {
	case err == nil:
	case errors.As(err, &a.ours):
		a.readOurs()
	case errors.Is(err, network.ErrResourceScopeClosed):
		a.class = scopeClosed
	case errors.As(err, &tooMany):
		a.class, a.scope = limitedByScope, refusing(err)
		a.what, _, _ = strings.Cut(strings.TrimPrefix(tooMany.Error(), "cannot reserve "), ":")
	case errors.Is(err, network.ErrResourceLimitExceeded):
		a.class, a.scope, a.what = limitedByScope, refusing(err), "memory"
	case strings.HasPrefix(err.Error(), "connections per ip limit exceeded"):
		a.class, a.what = limitedByGate, "subnet"
	case err.Error() == "rate limit exceeded":
		a.class, a.what = limitedByGate, "rate"
	default:
		a.class = senseless
	}
	return a
}

// readOurs reads a refusal of ours.
func (a *answer) readOurs() {
	switch a.ours.Kind() {
	case rcmgr.KindSubnet, rcmgr.KindRate:
		a.class, a.what = limitedByGate, a.ours.Kind().String()
		return
	}
	a.class, a.scope = limitedByScope, withoutNumbers(a.ours.Scope())
	a.what = a.ours.Resource().String()
	if dir := a.ours.Direction(); dir != network.DirUnknown {
		a.what = strings.ToLower(dir.String()) + " " + a.what
	}
}

// refusing returns the name of the scope that has refused, by an error of go-libp2p's, which
// has the names of the scopes on the way, each around the next.
func refusing(err error) (name string) {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return withoutNumbers(name)
		}
		if outer, ok := strings.CutSuffix(err.Error(), ": "+inner.Error()); ok && !strings.HasPrefix(outer, "cannot reserve ") {
			name = outer
		}
		err = inner
	}
}

func (c *call) text(s *scope) string {
	switch {
	case c.name == "OpenConnection":
		return fmt.Sprintf("OpenConnection(%v, %v, %v)", c.dir, c.usefd, c.endpoint)
	case c.name == "OpenStream":
		return fmt.Sprintf("OpenStream(%v, %v)", c.peer, c.dir)
	case c.reserves:
		return fmt.Sprintf("ReserveMemory(%d, %d) at %s", c.size, c.prio, s.name())
	case c.name == "SetPeer":
		return fmt.Sprintf("SetPeer(%v) at %s", peer.ID(c.to), s.name())
	case c.moves:
		return fmt.Sprintf("%s(%s) at %s", c.name, c.to, s.name())
	}
	return fmt.Sprintf("%s at %s", c.name, s.name())
}
