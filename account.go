package rcmgr

// account is what one scope, or a stripe's share of it, uses and may use. It
// lies in a stripe and is guarded by that stripe's lock.
type account struct {
	// What each request reads comes first, on one cache line.
	use held
	// ready is what may be used without asking further: the limit of an account
	// that lies in this stripe alone, the credit of a share.
	ready *amounts
	share *share     // of a share: itself; of a peer's part: what it is a part of; else nil
	ps    *peerScope // of a peer: itself; of a peer's part: whose; else nil
	// I6: own is the memory that was reserved at this very scope, a part of
	// use. A release takes from own only, never from what others hold below.
	own int64
	// I7: refs counts the streams, connections, spans, pairs and callers that
	// point here. Neither what is pointed at nor what holds something goes.
	refs   int32
	queued bool // stands in the stripe's queue of candidates for collection
	gone   bool // collected: whoever still points here looks the name up again
	sticky bool // its limit was set by hand: it keeps it, and is not collected
	kind   Kind
	// denied counts the requests that this very account refused. It is nil until the
	// first one: most accounts never refuse.
	denied *denied
}

// name makes the name of the account's scope. The lock of its stripe is held.
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

// limit gives the limit of the account's scope. The lock of its stripe is held.
func (a *account) limit() *amounts {
	if a.share != nil && a.ps == nil { // a share: what it has ready is its credit
		return &a.share.pool.limit
	}
	return a.ready
}

// unused tells whether nobody would miss the account (I7).
func (a *account) unused() bool {
	return a.refs == 0 && !a.sticky && !a.lasting() && a.use == held{}
}

// lasting tells whether the account is a share of one of the four scopes that
// are always there.
func (a *account) lasting() bool { return a.kind <= KindAllowlistedTransient }
