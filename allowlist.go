package rcmgr

// The peers and networks that are admitted when others are refused. Readers take one
// immutable view and no lock. A writer builds the next view from the last one, and shares
// what did not change. Addresses are looked up in prefix tables, so that a look-up costs
// about the same in a list of ten entries as in one of 100 000.

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/weir-p2p/rcmgr/internal/ip"
	"github.com/weir-p2p/rcmgr/internal/strictjson"
)

// Allowlist names the peers and networks whose connections and streams may use the
// allowlisted scopes. An entry is a multiaddr of one of these forms:
//
//	/ip4/192.0.2.1                          every peer at an address
//	/ip4/192.0.2.0/ipcidr/24                every peer in a network
//	/ip4/192.0.2.1/p2p/12D3KooW…            one peer, at an address
//	/ip6/2001:db8::/ipcidr/32/p2p/12D3KooW… one peer, in a network
//	/p2p/12D3KooW…                          one peer, wherever it is
//
// IPv4-mapped and NAT64 addresses, in entries and in endpoints, count as the IPv4
// addresses that they stand for. A relayed endpoint has no address, and in particular not
// that of its relay: only an entry that is a bare peer ID matches it.
//
// The peer at the far end of a connection is not known before the handshake is done.
// Until then, a connection from an address at which an entry names a peer counts as
// allowlisted. A bare peer ID has no such effect, because every stranger could be that
// peer: it counts from the moment the peer is known, for the connection and its streams.
//
// The zero value is an empty list, ready to use. All methods are safe for concurrent use,
// and a change holds for every look-up that begins after it. An Allowlist must not be
// copied after first use.
type Allowlist struct {
	writer sync.Mutex // one change at a time
	view   atomic.Pointer[allowlistView]
}

// allowlistView is the list at one moment. Neither it nor its tables change once readers
// can see it.
type allowlistView struct {
	open  *prefixCounts // the networks of entries that name no peer
	named *prefixCounts // the networks of entries that name a peer
	peers *bart.Table[peerEntries]
}

// prefixCounts has the number of entries for each network.
type prefixCounts = bart.Table[int]

// peerEntries has the entries that name one peer.
type peerEntries struct {
	bare int           // how many are the bare peer ID
	at   *prefixCounts // the networks of the others; nil if there are none
}

// emptyAllowlist returns a view without entries, which must not change once readers can
// see it.
func emptyAllowlist() *allowlistView {
	return &allowlistView{open: new(prefixCounts), named: new(prefixCounts), peers: new(bart.Table[peerEntries])}
}

// newAllowlist returns a list of these entries. It has no readers yet, so its tables are
// filled in place; Add copies what it changes.
func newAllowlist(entries []allowlistEntry) *Allowlist {
	al := new(Allowlist)
	if len(entries) == 0 {
		return al
	}
	v := emptyAllowlist()
	list := func(t *prefixCounts, network netip.Prefix) {
		t.Modify(network, func(n int, _ bool) (int, bool) { return n + 1, false })
	}
	for _, e := range entries {
		if e.peer == "" {
			list(v.open, e.network)
			continue
		}
		of, _ := v.peer(e.peer)
		if e.network.IsValid() {
			if of.at == nil {
				of.at = new(prefixCounts)
			}
			list(of.at, e.network)
			list(v.named, e.network)
		} else {
			of.bare++
		}
		v.peers.Insert(peerKey(e.peer), of)
	}
	al.view.Store(v)
	return al
}

// Add adds an entry, in one of the forms listed at Allowlist. An entry that is added
// twice must be removed twice. Components between the address and the peer ID, such as a
// port, are ignored. An error names the entry, and leaves the list unchanged.
func (al *Allowlist) Add(ma multiaddr.Multiaddr) error {
	return al.change(ma, 1)
}

// Remove undoes one Add of the same entry. Removing an entry that is not on the list is
// not an error, but removing one that could not be is. Open connections keep what the
// list gave them.
func (al *Allowlist) Remove(ma multiaddr.Multiaddr) error {
	return al.change(ma, -1)
}

// Allowed reports whether an entry covers the address of ma, with or without naming a
// peer: it is for a connection whose peer is not known yet. It is false for a multiaddr
// without an IP address, and for a relayed one.
func (al *Allowlist) Allowed(ma multiaddr.Multiaddr) bool {
	return al.trustIn(endpointOf(ma)) != noTrust
}

// AllowedPeerAndMultiaddr reports whether an entry covers this peer at the address of ma:
// an entry for the address that names no peer, one for the address that names this peer,
// or the bare peer ID.
func (al *Allowlist) AllowedPeerAndMultiaddr(peerID peer.ID, ma multiaddr.Multiaddr) bool {
	return al.allows(peerID, endpointOf(ma).addr)
}

// trust is what the list says of an endpoint whose peer is not known.
type trust uint8

const (
	noTrust    trust = iota
	trustsPeer       // a peer that may come from there is allowlisted
	trustsAddr       // every peer there is
)

// trustIn returns how far the list trusts an endpoint.
func (al *Allowlist) trustIn(ep endpoint) trust {
	v := al.view.Load()
	switch {
	case v == nil || !ep.addr.IsValid():
		return noTrust
	case v.open.Contains(ep.addr):
		return trustsAddr
	case v.named.Contains(ep.addr):
		return trustsPeer
	}
	return noTrust
}

// allows reports whether a peer is allowlisted at an address. If the address is invalid,
// the peer could be anywhere, and only a bare peer ID counts.
func (al *Allowlist) allows(p peer.ID, addr netip.Addr) bool {
	v := al.view.Load()
	if v == nil {
		return false
	}
	if addr.IsValid() && v.open.Contains(addr) {
		return true
	}
	e, ok := v.peer(p)
	return ok && (e.bare > 0 || addr.IsValid() && e.at != nil && e.at.Contains(addr))
}

// allowsPeer reports whether a peer is allowlisted wherever it is.
func (al *Allowlist) allowsPeer(p peer.ID) bool {
	v := al.view.Load()
	if v == nil {
		return false
	}
	e, _ := v.peer(p)
	return e.bare > 0
}

// hasEntries reports whether there is any entry.
func (al *Allowlist) hasEntries() bool {
	v := al.view.Load()
	return v != nil && v.open.Size()+v.peers.Size() > 0
}

func (v *allowlistView) peer(p peer.ID) (peerEntries, bool) {
	if v.peers.Size() == 0 {
		return peerEntries{}, false
	}
	return v.peers.Get(peerKey(p))
}

// peerKey returns a peer's key in a prefix table, which is used as a map that shares what
// does not change between copies. It is half of a SHA-256: making a peer ID with the key
// of another is as hard as finding that peer's private key.
func peerKey(p peer.ID) netip.Prefix {
	var buf [64]byte // room for any common peer ID
	digest := sha256.Sum256(append(buf[:0], p...))
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(digest[:])), 128)
}

// change adds (delta 1) or removes (delta -1) one entry.
func (al *Allowlist) change(ma multiaddr.Multiaddr, delta int) error {
	e, err := readAllowlistEntry(ma)
	if err == nil {
		al.put(e, delta)
	}
	return err
}

// put is change for an entry that has been parsed.
func (al *Allowlist) put(e allowlistEntry, delta int) {
	al.writer.Lock()
	defer al.writer.Unlock()
	v := al.view.Load()
	if v == nil {
		v = emptyAllowlist()
	}
	al.view.Store(v.with(e, delta))
}

// with returns the view with one entry more or less.
func (v *allowlistView) with(e allowlistEntry, delta int) *allowlistView {
	next := *v
	if e.peer == "" {
		next.open = count(v.open, e.network, delta)
		return &next
	}
	key := peerKey(e.peer)
	of, _ := v.peers.Get(key)
	switch {
	case !e.network.IsValid():
		of.bare = max(0, of.bare+delta)
	case delta > 0 || of.has(e.network):
		of.at = count(of.at, e.network, delta)
		next.named = count(v.named, e.network, delta)
	}
	if of.bare == 0 && (of.at == nil || of.at.Size() == 0) {
		next.peers = v.peers.DeletePersist(key)
	} else {
		next.peers = v.peers.InsertPersist(key, of)
	}
	return &next
}

func (e peerEntries) has(network netip.Prefix) bool {
	if e.at == nil {
		return false
	}
	_, ok := e.at.Get(network)
	return ok
}

// count returns the table with the count of one network changed by delta. Networks with a
// count of zero are not in it.
func count(t *prefixCounts, network netip.Prefix, delta int) *prefixCounts {
	if t == nil {
		t = new(prefixCounts)
	}
	return t.ModifyPersist(network, func(n int, _ bool) (int, bool) {
		n += delta
		return n, n <= 0
	})
}

// allowlistEntry is a parsed entry: a peer, a network, or both.
type allowlistEntry struct {
	peer    peer.ID
	network netip.Prefix
}

// parseAllowlistText reads an entry from a line of text. It ignores what editors leave
// around it: a byte-order mark before the first line, white space, and the carriage
// return at the end of a line from Windows. An error quotes the line.
func parseAllowlistText(text string) (allowlistEntry, error) {
	text = strings.TrimSpace(strings.TrimPrefix(text, strictjson.ByteOrderMark))
	ma, err := multiaddr.NewMultiaddr(text)
	if err != nil {
		return allowlistEntry{}, fmt.Errorf("allowlist entry %q: %w", text, err)
	}
	return readAllowlistEntry(ma)
}

// readAllowlistEntry reads an entry from a multiaddr. An error names it.
func readAllowlistEntry(ma multiaddr.Multiaddr) (allowlistEntry, error) {
	e, err := parseAllowlistEntry(ma)
	if err != nil {
		err = fmt.Errorf("allowlist entry %q: %w", ma, err)
	}
	return e, err
}

// parseAllowlistEntry is strict where a lenient reading would admit more than the entry's
// author meant, as for a name that is no IP address, or a relay.
func parseAllowlistEntry(ma multiaddr.Multiaddr) (e allowlistEntry, err error) {
	var addr netip.Addr
	bits := -1
	for i := range ma {
		raw := ma[i].RawValue()
		switch ma[i].Code() {
		case multiaddr.P_IP4, multiaddr.P_IP6:
			if addr.IsValid() {
				return e, errors.New("names two IP addresses, one was expected")
			}
			addr, _ = netip.AddrFromSlice(raw)
		case multiaddr.P_IPCIDR:
			if bits >= 0 {
				return e, errors.New("has two ipcidr lengths, one was expected")
			}
			bits = int(raw[0])
		case multiaddr.P_P2P:
			if e.peer != "" {
				return e, errors.New("names two peers, one was expected")
			}
			if e.peer, err = peer.IDFromBytes(raw); err != nil {
				return e, fmt.Errorf("peer ID: %w", err)
			}
		case multiaddr.P_CIRCUIT:
			return e, errors.New("is relayed, and a relay's address says nothing of the peer behind it: use /p2p/<peer ID>")
		}
	}
	if !addr.IsValid() {
		if e.peer == "" || len(ma) > 1 {
			return e, errors.New("expected an IP address, a network such as /ip4/192.0.2.0/ipcidr/24, or a peer ID as /p2p/<peer ID> alone")
		}
		return e, nil
	}
	if bits > addr.BitLen() {
		return e, fmt.Errorf("ipcidr length is %d, expected 0 to %d", bits, addr.BitLen())
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	e.network = ip.NormalPrefix(netip.PrefixFrom(addr, bits))
	return e, nil
}
