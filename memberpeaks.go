package rcmgr

// The most that any one peer has held, in all, in one protocol and in one service: what a
// limit on each of them has to leave room for. A stripe keeps it where its members are
// charged, for the generation of a minute that is running. The next one begins with what
// members hold then, so that what is held steadily is in each; two of them together have
// the last one to two minutes.

// memberKinds are the classes of members, by their slot in a chain.
var memberKinds = [...]Kind{KindPeer, KindProtocolPeer, KindServicePeer}

// memberPeaks has, for each class, the most that one member has held of each dimension.
// Each number was held at an instant, each at one of its own.
type memberPeaks [len(memberKinds)]held

// raise raises a peak to what a member holds of anything, if that is more.
func (p *memberPeaks) raise(slot int, use *held) {
	most := &p[slot]
	most.memory = max(most.memory, use.memory)
	for d := dimStreamsIn; d < numDims; d++ {
		most.raise(use, d)
	}
}

// add raises the peaks to those of o.
func (p *memberPeaks) add(o *memberPeaks) {
	for slot := range o {
		p.raise(slot, &o[slot])
	}
}

// byKind returns the peaks by the kinds of members.
func (p *memberPeaks) byKind() (all [numKinds]amounts) {
	for slot, k := range memberKinds {
		all[k] = p[slot].amounts()
	}
	return all
}

// memberHistory has the generations that are over. It is guarded by all stripe locks.
type memberHistory struct {
	last memberPeaks // of the generation before the one that is running
	ever memberPeaks // of all that are over
}
