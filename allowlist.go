package rcmgr

// The peers and networks that are admitted when others are refused. Readers take one
// immutable view and no lock. A writer builds the next view from the last one, and shares
// what did not change. Addresses are looked up in prefix tables, so that a lookup costs
// about the same in a list of ten entries as in one of 100,000.
//
// Entries that say more than one thing, such as those through a relay, are taken by go-libp2p's
// own allowlist, so they must not keep a node from starting. They are read as they are there, and
// logged. The reader of text, which only this package has, refuses them.

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
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
//	/dns4/example.com                       every peer at the addresses of a host name
//	/dnsaddr/example.com/p2p/12D3KooW…      one peer, at the addresses of a host name
//
// A host name (/dns, /dns4, /dns6 or /dnsaddr) needs a resolver; see WithAllowlistResolver.
//
// IPv4-mapped and NAT64 addresses, in entries and in endpoints, count as the IPv4
// addresses that they stand for. A relayed endpoint has no address, and in particular not
// that of its relay: only an entry that is a bare peer ID, or an entry through the relay (see
// Add), matches it.
//
// The peer at the far end of a connection is not known before the handshake is done.
// Until then, a connection from an address at which an entry names a peer counts as
// allowlisted. A bare peer ID has no such effect, because every stranger could be that
// peer: it counts from the moment the peer is known, for the connection and its streams.
//
// The zero value is an empty list, ready to use. All methods are safe for concurrent use,
// and a change holds for every lookup that begins after it. An Allowlist must not be
// copied after first use.
type Allowlist struct {
	writer sync.Mutex // one change at a time
	view   atomic.Pointer[allowlistView]
	names  nameKeeper // nil if no resolver looks up host names; set before first use
	strict bool       // see WithStrictConfig; set before first use
}

// nameKeeper keeps the entries that are host names, and lists the addresses that it finds for
// them by Allowlist.replace.
type nameKeeper interface {
	// change adds (delta 1) or removes (delta -1) a name.
	change(e allowlistEntry, delta int) error
	any() bool // reports whether there is a name
}

// allowlistView is the list at one moment. Neither it nor its tables change once readers
// can see it.
type allowlistView struct {
	open  *prefixCounts // the networks of entries that name no peer
	named *prefixCounts // the networks of entries that name a peer
	peers *bart.Table[peerEntries]
	// relays has the entries through a relay, whose networks are those of the relays; nil if
	// there are none. They are also among the others.
	relays *allowlistView
}

// prefixCounts has the number of entries for each network, by source: an address for which a
// host name stands does not leave the list with an entry of its own, nor the other way round.
type prefixCounts = bart.Table[[2]int32]

// source says whether an entry was added as it is, or a host name stands for it.
type source int

const (
	byItself source = iota
	byName
)

// peerEntries has the entries that name one peer.
type peerEntries struct {
	bare int           // how many are the bare peer ID
	at   *prefixCounts // the networks of the others; nil without networks
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
	entries, relayed := splitRelayed(entries)
	v := emptyAllowlist()
	v.relays = newAllowlist(relayed).view.Load()
	list := func(t *prefixCounts, network netip.Prefix) {
		t.Modify(network, func(n [2]int32, _ bool) ([2]int32, bool) { n[byItself]++; return n, false })
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
// port, are ignored. The lookup of a host name begins at once, and Add does not wait for the
// answer. An error names the entry, and leaves the list unchanged.
//
// An entry through a relay, or with two addresses, networks or peers, means what it means in
// go-libp2p's own allowlist: the last of each counts, and an entry through a relay covers the
// peer at the relay's address and through that relay. Add logs what such an entry covers. With
// WithStrictConfig, it is an error.
func (al *Allowlist) Add(ma multiaddr.Multiaddr) error {
	return al.change(ma, 1)
}

// Remove undoes one Add of the same entry. Removing an entry that is not on the list is
// not an error, but removing one that Add refuses is. An address stays on the list if a host
// name on the list stands for it, too. Connections that are open keep what the list gave them.
func (al *Allowlist) Remove(ma multiaddr.Multiaddr) error {
	return al.change(ma, -1)
}

// Allowed reports whether an entry covers the address of ma, with or without naming a
// peer: it is for a connection whose peer is not known yet. It is false for a multiaddr
// without an IP address. A relayed one is covered only by an entry through the same relay.
func (al *Allowlist) Allowed(ma multiaddr.Multiaddr) bool {
	return al.trustIn(endpointOf(ma)) != noTrust
}

// AllowedPeerAndMultiaddr reports whether an entry covers this peer at the address of ma:
// an entry for the address that names no peer, one for the address that names this peer,
// or the bare peer ID.
func (al *Allowlist) AllowedPeerAndMultiaddr(peerID peer.ID, ma multiaddr.Multiaddr) bool {
	ep := endpointOf(ma)
	return al.allowsAt(peerID, ep.addr, ep.via)
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
	v, addr := al.view.Load(), ep.addr
	if v != nil && ep.via.IsValid() {
		v, addr = v.relays, ep.via
	}
	switch {
	case v == nil || !addr.IsValid():
		return noTrust
	case v.open.Contains(addr):
		return trustsAddr
	case v.named.Contains(addr):
		return trustsPeer
	}
	return noTrust
}

// mayTrust reports whether the list trusts some peer at an address or, if that is invalid, behind a
// relay at via.
func (al *Allowlist) mayTrust(addr, via netip.Addr) bool {
	return al.trustIn(endpoint{addr: addr, via: via}) != noTrust
}

// allows reports whether a peer is allowlisted at an address. If the address is invalid,
// the peer could be anywhere, and only a bare peer ID counts.
func (al *Allowlist) allows(p peer.ID, addr netip.Addr) bool {
	v := al.view.Load()
	return v != nil && v.allows(p, addr)
}

func (v *allowlistView) allows(p peer.ID, addr netip.Addr) bool {
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
	return v != nil && v.open.Size()+v.peers.Size() > 0 || al.names != nil && al.names.any()
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
	e, err := al.read(ma, delta)
	if err != nil {
		return err
	}
	return al.put(e, delta)
}

// errNoResolver is the error of a host name that nothing can look up.
var errNoResolver = errors.New("expected an IP address or a peer ID: a host name needs a resolver (see WithAllowlistResolver)")

// put is change for an entry that has been parsed. It returns an error only for a host name.
func (al *Allowlist) put(e allowlistEntry, delta int) error {
	if e.name == "" {
		al.writer.Lock()
		defer al.writer.Unlock()
		al.view.Store(al.current().with(e, byItself, delta))
		return nil
	}
	err := errNoResolver
	if al.names != nil {
		err = al.names.change(e, delta)
	}
	if err != nil {
		err = fmt.Errorf("allowlist entry %q: %w", e, err)
	}
	return err
}

// replace removes entries for which a host name stood, and adds those for which it stands now,
// in one step: an entry that is in both lists is on the list at every moment. All of them have
// a network.
func (al *Allowlist) replace(before, after []allowlistEntry) {
	al.writer.Lock()
	defer al.writer.Unlock()
	v := al.current()
	for _, e := range after {
		v = v.with(e, byName, 1)
	}
	for _, e := range before {
		v = v.with(e, byName, -1)
	}
	al.view.Store(v)
}

// current returns the view to make the next one of. The writer's lock is held.
func (al *Allowlist) current() *allowlistView {
	if v := al.view.Load(); v != nil {
		return v
	}
	return emptyAllowlist()
}

// with returns the view with one entry more or less.
func (v *allowlistView) with(e allowlistEntry, from source, delta int) *allowlistView {
	next := *v
	if e.relayed {
		next.relays = v.withRelayed(e, from, delta)
	}
	if e.peer == "" {
		next.open = count(v.open, e.network, from, delta)
		return &next
	}
	key := peerKey(e.peer)
	of, _ := v.peers.Get(key)
	switch {
	case !e.network.IsValid():
		of.bare = max(0, of.bare+delta)
	case delta > 0 || of.has(e.network, from):
		of.at = count(of.at, e.network, from, delta)
		next.named = count(v.named, e.network, from, delta)
	}
	if of.bare == 0 && (of.at == nil || of.at.Size() == 0) {
		next.peers = v.peers.DeletePersist(key)
	} else {
		next.peers = v.peers.InsertPersist(key, of)
	}
	return &next
}

func (e peerEntries) has(network netip.Prefix, from source) bool {
	if e.at == nil {
		return false
	}
	n, _ := e.at.Get(network)
	return n[from] > 0
}

// count returns the table with one count of a network changed by delta, but not below zero.
// Networks whose counts are zero are not in it.
func count(t *prefixCounts, network netip.Prefix, from source, delta int) *prefixCounts {
	if t == nil {
		t = new(prefixCounts)
	}
	return t.ModifyPersist(network, func(n [2]int32, _ bool) ([2]int32, bool) {
		n[from] = max(0, n[from]+int32(delta))
		return n, n == [2]int32{}
	})
}

// allowlistEntry is a parsed entry: a peer, a network, or both, or a host name in place of the
// network.
type allowlistEntry struct {
	peer    peer.ID
	network netip.Prefix
	name    string // such as "/dns4/example.com"; empty if there is none
	relayed bool   // it also covers endpoints through a relay in the network
}

// String returns the entry as a multiaddr.
func (e allowlistEntry) String() string {
	text := e.name
	if e.network.IsValid() {
		text = "/ip6/"
		if e.network.Addr().Is4() {
			text = "/ip4/"
		}
		text += e.network.Addr().String()
		if !e.network.IsSingleIP() {
			text += "/ipcidr/" + strconv.Itoa(e.network.Bits())
		}
	}
	if e.peer != "" {
		text += "/p2p/" + e.peer.String()
	}
	return text
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
// author meant, as for a relay. If there is an IP address, a host name is ignored like a port.
func parseAllowlistEntry(ma multiaddr.Multiaddr) (e allowlistEntry, err error) {
	var addr netip.Addr
	bits, names := -1, 0
	for i := range ma {
		raw := ma[i].RawValue()
		switch ma[i].Code() {
		case multiaddr.P_IP4, multiaddr.P_IP6:
			if addr.IsValid() {
				return e, errors.New("names two IP addresses, one was expected")
			}
			addr, _ = netip.AddrFromSlice(raw)
		case multiaddr.P_DNS, multiaddr.P_DNS4, multiaddr.P_DNS6, multiaddr.P_DNSADDR:
			names++
			e.name = ma[i].String()
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
	switch {
	case addr.IsValid():
		e.name = ""
	case names > 1:
		return e, errors.New("has two host names, one was expected")
	case names == 1 && bits >= 0:
		return e, errors.New("has an ipcidr length, but a host name stands for whole addresses")
	case names == 1 || e.peer != "" && len(ma) == 1:
		return e, nil
	default:
		return e, errors.New("expected an IP address, a network such as /ip4/192.0.2.0/ipcidr/24, a host name such as /dns4/example.com, or a peer ID as /p2p/<peer ID> alone")
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

// readOrPassAllowlistEntry is readAllowlistEntry, except that it returns a fault in place of an
// error for an entry that go-libp2p's allowlist takes.
func readOrPassAllowlistEntry(ma multiaddr.Multiaddr) (e allowlistEntry, passed *fault, err error) {
	e, err = readAllowlistEntry(ma)
	if err == nil {
		return e, nil, nil
	}
	loose, ok := looseAllowlistEntry(ma)
	if !ok {
		return e, nil, err
	}
	who := "every peer"
	if loose.peer != "" {
		who = "peer " + loose.peer.String()
	}
	then := fmt.Sprintf("it covers %s at %s", who, loose.network)
	if loose.relayed {
		then += " and through a relay there"
	}
	return loose, &fault{err, then}, nil
}

// looseAllowlistEntry reads an entry as go-libp2p's allowlist does: the last address, network
// length and peer count, and nothing after the first three that are complete. It reports whether
// there is an address that fits its network.
func looseAllowlistEntry(ma multiaddr.Multiaddr) (e allowlistEntry, ok bool) {
	var addr netip.Addr
	bits, complete := -1, false
	for i := range ma {
		raw := ma[i].RawValue()
		code := ma[i].Code()
		e.relayed = e.relayed || code == multiaddr.P_CIRCUIT
		if complete {
			continue
		}
		switch code {
		case multiaddr.P_IP4, multiaddr.P_IP6:
			addr, _ = netip.AddrFromSlice(raw)
		case multiaddr.P_IPCIDR:
			bits = int(raw[0])
		case multiaddr.P_P2P:
			p, err := peer.IDFromBytes(raw)
			if err != nil {
				return allowlistEntry{}, false
			}
			e.peer = p
		}
		complete = addr.IsValid() && bits >= 0 && e.peer != ""
	}
	if !addr.IsValid() || bits > addr.BitLen() {
		return allowlistEntry{}, false
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	e.network = ip.NormalPrefix(netip.PrefixFrom(addr, bits))
	return e, true
}

// read reads an entry that is to be added (delta 1) or removed (delta -1).
func (al *Allowlist) read(ma multiaddr.Multiaddr, delta int) (allowlistEntry, error) {
	if al.strict {
		return readAllowlistEntry(ma)
	}
	e, passed, err := readOrPassAllowlistEntry(ma)
	if passed != nil && delta > 0 {
		log.Error(passed.String())
	}
	return e, err
}

// allowsAt reports whether a peer is allowlisted at an address, or behind a relay at the address
// via. Either may be invalid.
func (al *Allowlist) allowsAt(p peer.ID, addr, via netip.Addr) bool {
	if al.allows(p, addr) {
		return true
	}
	v := al.view.Load()
	return via.IsValid() && v != nil && v.relays != nil && v.relays.allows(p, via)
}

// splitRelayed splits entries into all of them, which are to be listed at their addresses, and
// those through a relay, which are also to be listed in allowlistView.relays. None in the results
// is relayed.
func splitRelayed(entries []allowlistEntry) (all, relayed []allowlistEntry) {
	for _, e := range entries {
		through := e.relayed
		e.relayed = false
		all = append(all, e)
		if through {
			relayed = append(relayed, e)
		}
	}
	return all, relayed
}

// withRelayed returns the relays of a view with one entry more or less.
func (v *allowlistView) withRelayed(e allowlistEntry, from source, delta int) *allowlistView {
	relays := v.relays
	if relays == nil {
		relays = emptyAllowlist()
	}
	e.relayed = false
	if relays = relays.with(e, from, delta); relays.open.Size()+relays.peers.Size() == 0 {
		return nil
	}
	return relays
}
