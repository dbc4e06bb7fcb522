package main

// What is damaged. Each piece must be in its file once, so that a change of the
// source that passes one by is noticed.
var damages = []damage{
	// Arithmetic.
	{"amounts.go", "return min(whole, 128+int64(priority))", "return min(whole, 129+int64(priority))"},
	{"amounts.go", "return limit>>8*weight + (limit&255)*weight>>8", "return limit * weight >> 8"},
	{"amounts.go", "return 1 + int64(priority)", "return int64(priority)"},
	{"account.go", "a.refs == 0 && !a.sticky && !a.lasting() && a.use == amounts{}", "a.refs == 0 && !a.sticky && !a.lasting()"},

	// Pools and credit.
	{"pool.go", "return max(0, l.handed-l.limit/idlePart)", "return l.handed"},
	{"pool.go", "return max(0, l.handed-l.limit/idlePart)", "return 0"},
	{"pool.go", "room := min(l.limit/2, bound) - l.handed", "room := bound - l.handed"},
	{"pool.go", "room := min(l.limit/2, bound) - l.handed", "room := l.limit/2 - l.handed"},
	{"pool.go", "l.batch > short && l.batch <= room", "l.batch > short"},
	{"pool.go", "return n > bound-l.leastUse()", "return n >= bound-l.leastUse()"},
	{"pool.go", "l.handed < l.limit/4", "l.handed < l.limit/2"},
	{"pool.go", "l.tight = l.batch == 0 || used > l.limit/4", "l.tight = used > l.limit/4"},
	{"pool.go", "l.tight = l.batch == 0 || used > l.limit/4", "l.tight = true"},
	{"pool.go", "return 2 * l.batch", "return 4 * l.batch"},
	{"pool.go", "if l.tight {\n\t\treturn 0\n\t}", ""},
	{"pool.go", "p.batch[d] = batchOf(limit[d], len(p.shares))\n\t\tp.recall(d, 0)", "p.batch[d] = batchOf(limit[d], len(p.shares))"},
	{"pool.go", "sh.pool.recall(it.d, it.n)\n\tsh.carry(it.d, it.n)", "sh.pool.recall(it.d, it.n)"},
	{"pool.go", "return limit / int64(batches*stripes)", "return limit / batches"},
	{"pool.go", "if l.handed > p.peak[d] && !isUnlimited(d, l.limit) {", "if l.handed < p.peak[d] && !isUnlimited(d, l.limit) {"},

	// Chains.
	{"chain.go", "if bound := r.bound(st, a, it.d); it.n > bound-a.use[it.d] {", "if bound := r.bound(st, a, it.d); it.n >= bound-a.use[it.d] {"},
	{"chain.go", "return limit - limit/4", "return limit"},
	{"chain.go", "v := st.judge(&list, r, false)\n\tif v == admitted {\n\t\tst.judge(&list, r, true)", "v := admitted\n\tif v == admitted {\n\t\tst.judge(&list, r, true)"},
	{"chain.go", "if it.n <= bound-used {", "if it.n < bound-used {"},
	{"chain.go", "sh != nil && sh.idles(r)", "sh != nil && false"},
	{"chain.go", "charged.use.refund(r)", ""},
	{"chain.go", "return it.d == dimMemory && (r.weight < whole/2 || it.n == 0)", "return false"},

	{"memory.go", "charged.use[dimMemory] -= n", ""},
	{"memory.go", "return l.tight && !l.refuses(n, l.limit)", "return !l.refuses(n, l.limit)"},
	{"memory.go", "sh.use[dimMemory] < sh.floor[dimMemory]", "sh.use[dimMemory] < 0"},

	// Scopes.
	{"scope.go", "if a.index > b.index {", "if a.index < b.index {"},
	{"scope.go", "h.own, h.done = 0, true", "h.own = 0"},
	{"scope.go", "for ; x != nil && !x.done; x = x.owner {", "for ; x != nil; x = x.owner {"},
	{"scope.go", "&here.use, &here.credit, &here.floor", "&here.use"},
	{"scope.go", "from.giveBack(c.chain.at[slotTransient], &total)", ""},
	{"scope.go", "n := max(0, min(int64(size), h.own)) // I6", "n := max(0, min(int64(size), h.use))"},
	{"scope.go", "sh.refs++\n", ""},
	{"scope.go", "c.chain.peer.trusted--", "c.chain.peer.trusted++"},
	{"shared.go", "n := max(0, min(int64(size), a.own)) // I6", "n := int64(size)"},
	{"shared.go", "a.sticky = true", ""},

	// Stripes and collection.
	{"stripe.go", "if p.members--; p.members == 0 && !p.sticky {", "if p.members--; p.members == 0 {"},
	{"stripe.go", "if !a.queued && a.unused() {", "if false {"},
	{"reap.go", "if !a.gone && a.unused() {", "if !a.gone {"},
	{"reap.go", "sh.surrender()", ""},
	{"open.go", "c.peer.refs++", ""},
	{"open.go", "if v == refused && (fallBack", "if v != admitted && (fallBack"},

	// Gates.
	{"subnettable.go", "return int64(rec.conns) >= l.conns", "return int64(rec.conns) > l.conns"},
	{"subnettable.go", "if (i-t.home(t.slots[i].key))&last >= (i-gap)&last {", "if true {"},
	{"subnets.go", "st.fillLocked(rec, l.tokens.interval)", ""},
	{"subnets.go", "st.countLocked(rec, -1)", ""},
	{"gateswap.go", "s.countInherited(one.prefix(), one.conns)", "s.countInherited(one.prefix(), 0)"},
	{"rate.go", "next = max(fullAt, at) + b.interval", "next = fullAt + b.interval"},
	{"rate.go", "return next, next-at <= b.capacity", "return next, next-at < b.capacity"},
	{"gate.go", "return l.leastUse() > l.limit/2", "return l.leastUse() > l.limit"},
	{"endpoint.go", "return endpoint{relayed: true}", "far.relayed = true"},
	{"allowlist.go", "return e.bare > 0", "return true"},

	// Limits.
	{"limits.go", "out[k] = join(a, unnamed)", "var none B\n\t\t\tout[k] = join(a, none)"},
	{"limits.go", "to.Memory = cmp.Or(to.Memory, from.Memory)", "to.Memory = from.Memory"},
	{"limits.go", "int64(Unlimited):     `\"unlimited\"`", "int64(Unlimited):     `\"infinite\"`"},
	{"defaults.go", "return math.MaxInt\n", "return 0\n"},
	{"limitsjson.go", "return cmp.Or(built.checkTransient(cfg), costs, gates)", "_ = gates\n\treturn cmp.Or(built.checkTransient(cfg), costs)"},
}
