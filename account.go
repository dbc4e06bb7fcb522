package rcmgr

// account is what one scope, or a stripe's share of it, uses and may use. It
// lies in a stripe and is guarded by that stripe's lock. It fills one cache line and a word.
type account struct {
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
	ps     *peerScope // a peer's: itself; a peer's part's: the peer; else nil
}

// direct is what an account has besides if it is that of a directScope, or a share of one. A peer's
// part of a service or protocol has none.
type direct struct {
	// own is the memory that was reserved at this scope itself: 0 <= own <= use.memory (I6). A
	// release takes from own only, never from what is held below.
	own int64
	// denied counts the requests that the account refused. It is nil until the first one,
	// since most accounts never refuse.
	denied *denied
}

// asDirect returns what the account has as that of a directScope, or nil if it has nothing yet, as
// few peers have, or is a peer's part of a service or protocol.
func (a *account) asDirect() *direct {
	switch {
	case a.share == nil:
		return a.ps.asDirect()
	case a.ps == nil:
		return &a.share.direct
	}
	return nil
}

// makeDirect is asDirect for the account of a directScope that gets something.
func (a *account) makeDirect() *direct {
	if a.share == nil {
		return &a.ps.makeRare().direct
	}
	return &a.share.direct
}

// name returns the name of the account's scope. The lock of its stripe is held.
func (a *account) name() scopeName {
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
