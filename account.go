package rcmgr

// account is what one scope, or a stripe's share of it, uses and may use. It
// lies in a stripe and is guarded by that stripe's lock.
type account struct {
	// What each request reads and writes comes first, on one cache line.
	use held
	// ready is what may be used without asking a pool: the limit of an account that lies in
	// this stripe alone, and the credit of a share. See limit.
	ready *amounts
	share *share // a share's: itself; a peer's part's: the share that it is a part of; else nil
	// refs counts the streams, connections, spans, pairs and callers that point here. While it
	// is above zero, or use is not zero, the account is not collected (I7).
	refs   int32
	queued bool // stands in the stripe's queue of candidates for collection
	gone   bool // collected: a handle that still points here looks the name up again
	sticky bool // its limit was set by hand: it keeps it, and is not collected
	kind   Kind

	// What seldom changes is on another one.
	ps *peerScope // a peer's: itself; a peer's part's: the peer; else nil
	// own is the memory that was reserved at this scope itself: 0 <= own <= use.memory (I6). A
	// release takes from own only, never from what is held below.
	own int64
	// denied counts the requests that this account refused. It is nil until the first one,
	// since most accounts never refuse.
	denied *denied
}

// name returns the name of the account's scope. The lock of its stripe is held.
func (a *account) name() scopeName {
	if a.denied != nil {
		return a.denied.name
	}
	n := scopeName{kind: a.kind}
	if a.share != nil {
		n.text = a.share.pool.name
	}
	if a.ps != nil {
		n.peer = a.ps.id
	}
	return n
}

// limit returns the limit of the account's scope. The lock of its stripe is held.
func (a *account) limit() *amounts {
	if a.share != nil && a.ps == nil { // a share, which has its credit ready
		return &a.share.pool.limit
	}
	return a.ready
}

// unused reports whether the account may be collected (I7).
func (a *account) unused() bool {
	return a.refs == 0 && !a.sticky && !a.lasting() && a.use == held{}
}

// lasting reports whether the account is a share of one of the four scopes that
// are always there.
func (a *account) lasting() bool { return a.kind <= KindAllowlistedTransient }
