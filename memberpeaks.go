package rcmgr

// The most that any one peer has held, in all, in one protocol and in one service. A
// limit on each peer has to leave room for that. Each stripe records the peaks of its members
// as it charges them, for about a minute, which is one generation. A new generation starts
// from what members hold at that moment, so that a constant use is in each. The current
// generation and the one before cover the last one to two minutes.

// memberKinds has the classes of members, by their slot in a chain.
var memberKinds = [...]Kind{KindPeer, KindProtocolPeer, KindServicePeer}

// memberPeaks has, for each class, the most that any one member has held of each
// dimension. The numbers are of different instants.
type memberPeaks [len(memberKinds)]held

// raise raises the peaks to what a member holds, where that is more.
func (p *memberPeaks) raise(slot int, use *held) {
	most := &p[slot]
	most.memory = max(most.memory, use.memory)
	for d := dimStreamsIn; d < numDims; d++ {
		most.raise(use, d)
	}
}

// add raises the peaks to those of o, where those are more.
func (p *memberPeaks) add(o *memberPeaks) {
	for slot := range o {
		p.raise(slot, &o[slot])
	}
}

// byKind returns the peaks by the kind of member.
func (p *memberPeaks) byKind() (all [numKinds]amounts) {
	for slot, k := range memberKinds {
		all[k] = p[slot].amounts()
	}
	return all
}

// memberHistory has the generations that have ended. It is guarded by all stripe locks.
type memberHistory struct {
	last memberPeaks // of the generation before the current one
	ever memberPeaks // of all generations that have ended
}
