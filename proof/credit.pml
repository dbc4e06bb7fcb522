/*
 * The credit protocol of rcmgr for spin: a second model beside the Go explorer
 * (explore_model_test.go), written apart from it and from the engine, so that a
 * mistake in how one of them was understood shows in the other.
 *
 * Three stripes share two pools. Pool 0 has batches, and is loose or tight;
 * pool 1 is too small for them, and always tight. Connections lie in a stripe
 * and count in both pools, one in pool 0 alone. Workers reserve on them and
 * release, one process takes a connection to another stripe and out of pool 0,
 * and one changes the limit of pool 0 and back. Each takes and drops locks in
 * steps of their own.
 *
 * proof/spin.sh checks it, and that each BREAK_… below breaks the promise that
 * it should break.
 */

#ifndef STRIPES
#define STRIPES 3
#endif
#ifndef LIMIT0
#define LIMIT0 48 /* a batch is 1, a quarter 12, half 24, an eighth 6 */
#endif
#ifndef LIMIT1
#define LIMIT1 27
#endif
#ifndef LOWER0
#define LOWER0 16 /* what the limit of pool 0 becomes: too small for batches */
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#define POOLS 2

/* The promises. A run ends at the first that is broken, and names it. */
bool no_overshoot = true, no_false_admission = true, no_false_refusal = true, credit_conserved = true,
	credit_covers_use = true, loose_below_half = true, idle_bounded = true, tight_is_exact = true, turns_at_quarter = true,
	all_locks_once = true, zero_at_end = true;

/* With ONLY, one of them alone can end a run. */
#ifdef ONLY
#define promised(promise) assert(ONLY)
#else
#define promised(promise) assert(promise)
#endif

short limit[POOLS], handed[POOLS];
bool tight[POOLS];
bool drawingLock, stripeLock[STRIPES];

typedef row { short use[STRIPES]; short credit[STRIPES]; short floor[STRIPES] }
row share[POOLS];

typedef connection { byte at; bool in[POOLS]; short held }
connection conn[WORKERS];

/* What is really in use: from the instant at which a request is admitted to
 * that at which its release is seen by all. Only promises read it. */
short inUse[POOLS];

#define ADMITTED 0
#define REFUSED 1
#define UNDECIDED 2

#define batch(p) (limit[p] / (16 * STRIPES))
#if defined(BREAK_KEEP_MORE)
#define keep(p) (tight[p] -> 0 : 6 * batch(p))
#elif defined(BREAK_KEEP_TIGHT)
#define keep(p) (2 * batch(p))
#else
#define keep(p) (tight[p] -> 0 : 2 * batch(p))
#endif
#define bound(p, quarters) (limit[p] * (quarters) / 4)
#define atLeast(x, y) ((x) > (y) -> (x) : (y))
#define atMost(x, y) ((x) < (y) -> (x) : (y))
#ifdef BREAK_LOW_WEIGHT
#define exact(n, quarters) ((n) == 0)
#else
#define exact(n, quarters) ((quarters) < 2 || (n) == 0)
#endif
#define lack(p, s, n) atLeast(0, (n) - (share[p].credit[s] - share[p].use[s]))

/* A pool refuses by its word only where it is tight: handed out is used then. */
#ifdef BREAK_HANDED_IS_USE
#define refuses(mark) (true)
#else
#define refuses(mark) (mark)
#endif

/* promise holds the state of one pool against what must be so in every state. */
inline promise(p) {
	sum = 0;
	for (i : 0 .. STRIPES-1) {
		sum = sum + share[p].credit[i];
		credit_covers_use = credit_covers_use && share[p].use[i] >= 0 && share[p].use[i] <= share[p].credit[i]
	}
	i = 0;
	promised(credit_covers_use);
	credit_conserved = (sum == handed[p]);
	promised(credit_conserved);
	loose_below_half = (tight[p] || handed[p] <= limit[p] / 2);
	promised(loose_below_half);
	idle_bounded = (tight[p] || handed[p] - inUse[p] <= limit[p] / 8);
	promised(idle_bounded);
	turns_at_quarter = (!tight[p] || batch(p) == 0 || handed[p] >= limit[p] / 4);
	promised(turns_at_quarter);
	tight_is_exact = (!tight[p] || handed[p] <= inUse[p]);
	promised(tight_is_exact);
	sum = 0
}

/* admit is the instant at which a request is admitted. */
inline admit(c, n, quarters) {
	for (i : 0 .. POOLS-1) {
		if
		:: conn[c].in[i] ->
			inUse[i] = inUse[i] + n;
			no_overshoot = (n == 0 || inUse[i] <= limit[i]);
			promised(no_overshoot);
			no_false_admission = (inUse[i] <= bound(i, quarters));
			promised(no_false_admission)
		:: else
		fi
	}
	i = 0
}

/* refuse is the instant at which pool p refuses a request. */
inline refuse(p, n, quarters) {
	no_false_refusal = (n > bound(p, quarters) - inUse[p]);
	promised(no_false_refusal)
}

/* decide asks pool p by one look at what it has handed out and its mark. */
inline decide(p, s, n, quarters, mark) {
	grant = 0;
	short_ = lack(p, s, n);
	room = atMost(limit[p] / 2, bound(p, quarters)) - handed[p];
	if
	:: refuses(mark) && n > bound(p, quarters) - handed[p] -> verdict = REFUSED
	:: else ->
		if
		:: mark -> verdict = ADMITTED; grant = short_
		:: !(mark) && short_ > room ->
#ifdef BREAK_HALF
			verdict = ADMITTED; grant = short_
#else
			verdict = UNDECIDED
#endif
		:: else ->
			verdict = ADMITTED;
			grant = (short_ > 0 && batch(p) > short_ && batch(p) <= room -> batch(p) : short_)
		fi
	fi;
	room = 0;
	short_ = 0
}

/* recall takes in all idle credit of pool p, with extra handed out on top. */
inline recall(p, extra) {
	handed[p] = extra;
	for (i : 0 .. STRIPES-1) { handed[p] = handed[p] + share[p].use[i] }
	tight[p] = (batch(p) == 0 || handed[p] > limit[p] / 4);
	for (i : 0 .. STRIPES-1) {
#ifndef BREAK_RECALL
		share[p].credit[i] = share[p].use[i];
#endif
		share[p].floor[i] = share[p].credit[i] - keep(p)
	}
	i = 0
}

inline handOut(p, s, n) {
	handed[p] = handed[p] + n;
	share[p].credit[s] = share[p].credit[s] + n;
	share[p].floor[s] = share[p].credit[s] - keep(p)
}

/* excess is the credit that a share has to return. */
#define idle(p, s) (share[p].credit[s] - share[p].use[s])
#define excess(p, s) (idle(p, s) > keep(p) -> idle(p, s) - keep(p) / 2 : 0)

/* trim returns the idle credit of a share: under the drawing lock, if the pool
 * becomes loose by that. */
inline trim(p, s) {
	grant = excess(p, s);
	handed[p] = handed[p] - grant;
	if
#ifndef BREAK_STAYS_TIGHT
	:: tight[p] && batch(p) > 0 && handed[p] < limit[p] / 4 -> tight[p] = false
#endif
	:: else
	fi;
	share[p].credit[s] = share[p].credit[s] - grant;
	share[p].floor[s] = share[p].credit[s] - keep(p);
	grant = 0
}

/* giveUp takes n from the use of a share, and returns idle credit. Where it
 * does, others see the release only then. */
inline giveUp(p, s, n) {
	atomic {
		share[p].use[s] = share[p].use[s] - n;
		if
		:: share[p].use[s] >= share[p].floor[s] -> inUse[p] = inUse[p] - n; promise(p)
		:: else ->
#ifndef BREAK_LOOSE_ANYTIME
			/* Others go on here, while it waits. */
			(!drawingLock || !tight[p] || batch(p) == 0 || handed[p] - excess(p, s) >= limit[p] / 4);
#endif
			inUse[p] = inUse[p] - n;
			trim(p, s);
			promise(p)
		fi
	}
}

inline lockStripe(s) { atomic { !stripeLock[s] -> stripeLock[s] = true } }
inline unlockStripe(s) { stripeLock[s] = false }
inline lockAll() {
	k = 0;
	do
	:: k < STRIPES -> lockStripe(k); k++
	:: else -> break
	od
}
inline unlockAll() { atomic { for (i : 0 .. STRIPES-1) { stripeLock[i] = false } i = 0 } }

/* lockConn finds the stripe of a connection and locks it. */
inline lockConn(c, s) {
	s = conn[c].at;
	do
	:: lockStripe(s);
#ifdef BREAK_COMPARE
		break
#else
		if
		:: conn[c].at == s -> break
		:: else -> unlockStripe(s); s = conn[c].at
		fi
#endif
	od
}

#define LOCALS \
	byte i, k, s, verdict; \
	short sum, room, grant, short_; \
	bool lacking[POOLS], any, all, mark

/* settle decides under all stripe locks, on the exact sums. */
inline settle(c, n, quarters) {
	atomic {
		s = conn[c].at;
		verdict = ADMITTED;
		for (k : 0 .. POOLS-1) {
			if
			:: verdict == ADMITTED && lacking[k] ->
				sum = 0;
				for (i : 0 .. STRIPES-1) { sum = sum + share[k].use[i] }
				if
				:: n > bound(k, quarters) - sum ->
					verdict = REFUSED;
					if
					:: !exact(n, quarters) -> recall(k, 0)
					:: else
					fi;
					refuse(k, n, quarters)
				:: else
				fi
			:: else
			fi
		}
		sum = 0;
		if
		:: verdict == ADMITTED ->
			admit(c, n, quarters);
			for (k : 0 .. POOLS-1) {
				short_ = lack(k, s, n);
				if
				:: !lacking[k] || short_ == 0
				:: else ->
					if
					:: !tight[k] && short_ <= limit[k] / 2 - handed[k] -> handOut(k, s, short_)
					:: else ->
						recall(k, n);
						share[k].credit[s] = share[k].credit[s] + n;
						share[k].floor[s] = share[k].floor[s] + n
					fi
				fi
			}
			short_ = 0;
			charge(c, s, n)
		:: else
		fi;
		k = 0;
		promise(0);
		promise(1)
	}
}

/* charge adds what was admitted to the use of the connection's shares. */
inline charge(c, s, n) {
	for (i : 0 .. POOLS-1) {
		if
		:: conn[c].in[i] -> share[i].use[s] = share[i].use[s] + n
		:: else
		fi
	}
	i = 0;
	conn[c].held = conn[c].held + n
}

/* look finds the pools that have to be asked. */
inline look(c, s, n, quarters) {
	atomic {
		any = false;
		for (i : 0 .. POOLS-1) {
			lacking[i] = (conn[c].in[i] && (n > share[i].credit[s] - share[i].use[s] || exact(n, quarters)));
			any = any || lacking[i]
		}
		i = 0
	}
}

/* reserve leaves its verdict, and no lock. */
inline reserve(c, n, quarters) {
	all = false;
again:
	lockConn(c, s);
	look(c, s, n, quarters);
	verdict = ADMITTED;
	if
	:: !any -> atomic { admit(c, n, quarters); charge(c, s, n); promise(0); promise(1) }
	:: else ->
		/* One look at each pool, without the drawing lock. */
		k = 0;
		do
		:: k == POOLS || verdict != ADMITTED -> break
		:: else ->
			if
			:: lacking[k] ->
#ifdef BREAK_MARK
				mark = tight[k];
#endif
				atomic {
#ifndef BREAK_MARK
					mark = tight[k];
#endif
					decide(k, s, n, quarters, mark);
					mark = false;
					if
					:: verdict == REFUSED -> refuse(k, n, quarters)
					:: else
					fi
				}
			:: else
			fi;
			k++
		od;
		if
		:: verdict != ADMITTED
		:: else ->
			/* The drawing lock, and the same question again. */
			atomic { !drawingLock; drawingLock = true }
			atomic {
#ifndef BREAK_ONE_LOOK
				for (k : 0 .. POOLS-1) {
					if
					:: lacking[k] && verdict == ADMITTED ->
						decide(k, s, n, quarters, tight[k]);
						if
						:: verdict == REFUSED -> refuse(k, n, quarters)
						:: else
						fi
					:: else
					fi
				}
#endif
				k = 0;
				if
				:: verdict == ADMITTED -> admit(c, n, quarters)
				:: else
				fi
			}
			do
			:: k == POOLS || verdict != ADMITTED -> break
			:: else ->
				atomic {
					if
					:: lacking[k] ->
						decide(k, s, n, quarters, tight[k]);
						verdict = ADMITTED;
#ifdef BREAK_ONE_LOOK
						grant = lack(k, s, n);
#endif
						handOut(k, s, grant);
						grant = 0;
						promise(k)
					:: else
					fi;
					k++
				}
			od;
			if
			:: verdict == ADMITTED -> atomic { charge(c, s, n); promise(0); promise(1) }
			:: else
			fi;
			drawingLock = false
		fi
	fi;
	k = 0;
	unlockStripe(s);
	do
	:: verdict != UNDECIDED -> break
	:: else ->
		all_locks_once = !all;
		promised(all_locks_once);
		all = true;
		lockAll();
#ifdef BREAK_LET_GO
		atomic { recall(0, 0); recall(1, 0) }
		unlockAll();
		goto again
#else
		look(c, conn[c].at, n, quarters);
		settle(c, n, quarters);
		unlockAll()
#endif
	od;
	atomic { all = false; any = false; grant = 0; for (i : 0 .. POOLS-1) { lacking[i] = false } i = 0 }
}

/* release gives back all that a connection holds. */
inline release(c) {
	lockConn(c, s);
	sum = conn[c].held;
	conn[c].held = 0;
	room = sum;
	k = 0;
	do
	:: k == POOLS -> break
	:: else ->
		if
		:: conn[c].in[k] -> giving = room; giveUp(k, s, giving); room = giving
		:: else
		fi;
#ifdef BREAK_RELEASE
		break
#endif
		k++
	od;
	atomic { k = 0; room = 0; giving = 0; sum = 0 }
	unlockStripe(s)
}

proctype worker(byte c) {
	LOCALS;
	short n, giving;
	byte quarters, round;
	do
	:: round == ROUNDS -> break
	:: else ->
		round++;
		if
		:: n = 1; quarters = 4
		:: n = 1; quarters = 1
		:: n = 24; quarters = 2
		:: n = 25; quarters = 4
		fi;
		reserve(c, n, quarters);
		verdict = ADMITTED;
		if
		:: round == ROUNDS || c == 0 -> release(c)
		:: else /* more on top of it */
		fi;
		n = 0;
		quarters = 0
	od
}

/* mover takes a connection to its peer's stripe, to credit that lies idle there (as the
 * engine does with one that holds no memory) or with its own, and out of pool 0. */
proctype mover(byte c, goal) {
	LOCALS;
	short giving;
	bool along;
	s = conn[c].at;
	if
	:: s == goal -> skip
	:: else ->
#ifdef BREAK_STRIPE_ORDER
		lockStripe(s); lockStripe(goal);
#else
		if
		:: s < goal -> lockStripe(s); lockStripe(goal)
		:: else -> lockStripe(goal); lockStripe(s)
		fi;
#endif
		atomic {
			giving = conn[c].held;
			share[1].use[s] = share[1].use[s] - giving;
			share[1].use[goal] = share[1].use[goal] + giving;
			along = share[1].use[goal] > share[1].credit[goal];
			if
			:: along ->
#ifndef BREAK_CARRY
				share[1].credit[s] = share[1].credit[s] - giving;
				share[1].floor[s] = share[1].floor[s] - giving;
				share[1].credit[goal] = share[1].credit[goal] + giving;
				share[1].floor[goal] = share[1].floor[goal] + giving;
#endif
				skip
			:: else -> skip
			fi;
			conn[c].in[0] = false;
			conn[c].at = goal;
			promise(1)
		}
		if
		:: !along -> giveUp(1, s, 0)
		:: else -> skip
		fi;
		giveUp(0, s, giving);
		unlockStripe(goal);
		unlockStripe(s)
	fi
}

inline setLimit(p, n) {
	lockAll();
	atomic {
		limit[p] = n;
#ifndef BREAK_LIMIT
		recall(p, 0);
#endif
		k = 0;
		promise(p)
	}
	unlockAll()
}

proctype changer() {
	LOCALS;
	setLimit(0, LOWER0);
	setLimit(0, LIMIT0)
}

init {
	byte c;
	atomic {
		limit[0] = LIMIT0;
		limit[1] = LIMIT1;
		tight[0] = (LIMIT0 / (16 * STRIPES) == 0);
		tight[1] = (LIMIT1 / (16 * STRIPES) == 0);
		for (c : 0 .. WORKERS-1) {
			conn[c].at = c % STRIPES;
			conn[c].in[0] = true;
			conn[c].in[1] = (c != 1); /* its requests may need no pool at all */
			run worker(c)
		}
#ifndef NO_MOVE
		run mover(0, STRIPES - 1);
#endif
#ifdef BREAK_STRIPE_ORDER
		run mover(1, 0);
#endif
#ifndef NO_CHANGE
		run changer();
#endif
	}
	_nr_pr == 1;
	zero_at_end = (inUse[0] == 0 && inUse[1] == 0);
	for (c : 0 .. STRIPES-1) { zero_at_end = zero_at_end && share[0].use[c] == 0 && share[1].use[c] == 0 }
	promised(zero_at_end)
}
