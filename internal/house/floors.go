package main

// floor is a set of files. A file may name only what files of its own floor and of lower floors
// declare.
type floor struct {
	name  string
	about string
	rooms []room
}

// room is a file, or several files that belong together, with a description.
type room struct {
	files string // separated by spaces
	about string
}

// engine is the only floor whose files may name each other in circles, because a scope, its
// account, the share of a pool and their stripe are one machine.
const engine = "engine"

// floors has the files of package rcmgr, from the top floor down. A new file must be added here;
// then go run ./internal/house -write updates CONTRIBUTING.md.
var floors = []floor{
	{"top", "makes a manager, and serves its page", []room{
		{"new.go", "making a manager from limits and options; closing it"},
		{"room.go", "making room on full hosts: hosts, the worker, the log. `internal/letgo/` finds and closes, `internal/evict/` chooses"},
		{"schedule.go", "the recurring jobs of a manager, and their one worker"},
		{"handle.go", "one manager for several hosts"},
		{"nodelimits.go", "limits for a node, from two numbers"},
		{"crosscheck.go", "limits that contradict the connection manager"},
		{"page.go", "the live page, with questions in its address"},
	}},
	{"seeing", "reads, and decides nothing", []room{
		{"snapshot.go snapshotgates.go", "`Snapshot`: everything at one instant, or some services, protocols and peers by name; the state of the gates"},
		{"snapshotjson.go", "a snapshot as JSON"},
		{"table.go snapshotdiff.go", "a snapshot as tables; the differences of two snapshots"},
		{"report.go", "a snapshot as one text; the limit that an operator has to look at first, and the peer or subnet that holds most of it"},
		{"explain.go", "`Explain`: whether a request would be admitted now, and which limit is in the way"},
		{"stat.go", "`Stat`; the reading that metrics are made of"},
		{"roomstate.go roomcounts.go roomtable.go", "what was let go to make room: for snapshots, metrics and tables"},
		{"busiest.go", "the busiest services and protocols, which alone are named if there are many"},
		{"limitsinforce.go", "the limits in force, read back"},
		{"refusallog.go", "the log of refusals"},
		{"nearlimit.go", "calls to a program's function when a limit is nearly reached; trimming"},
		{"metrics.go families.go upstreammetrics.go", "Prometheus: registration; what is shown; what go-libp2p's own collectors show"},
	}},
	{"door", "the methods that a host calls", []room{
		{"manager.go", "`Manager`: its scopes to look at, its allowlist, observing"},
		{"options.go passedover.go", "options; mistakes in them that are ignored and logged"},
		{"open.go", "opening connections and streams"},
		{"opening.go", "a connection or stream before it is open; holders that are used again"},
		{"conn.go", "a connection, and how it moves to its peer"},
		{"stream.go", "a stream, and how it is attached to protocol and service"},
		{"roomfacts.go", "what the engine knows of a connection or stream that may be let go, and what it is short of"},
		{"entry.go", "what is checked before any scope is asked"},
		{"gateswap.go", "other gates while the manager runs"},
		{"setlimits.go", "other limits while the manager runs"},
	}},
	{engine, "keeps account, and decides", []room{
		{"engine.go", "`engine`: stripes, shared scopes, limits in force; `decide`, which owns the retry under all locks"},
		{"stripe.go", "a lock and all that lies under it"},
		{"peers.go", "the peers of a stripe, by their IDs"},
		{"scope.go", "trees of holders: connections, streams and spans"},
		{"shared.go", "peers, services, protocols and the four scopes that are always there, as scopes themselves"},
		{"account.go", "what one scope, or a stripe's share of it, uses and may use"},
		{"pool.go", "shared scopes: credit, half rule, loose and tight"},
		{"chain.go", "one operation: check all accounts of its chain, then charge all"},
		{"unit.go", "connections and streams as they are counted, and the shortest ways to open, move and end them"},
		{"tokens.go", "rates: the buckets of accounts, asked before their limits"},
		{"memory.go", "reserving and releasing memory: the shortest way through a chain"},
		{"refusing.go", "a refusal: noted; if nothing overrides it, counted, returned as an error and logged; limits that are only observed; the peer or subnet that holds most of a limit"},
		{"reap.go", "collecting what is unused"},
		{"ration.go", "how much of a limit a request may fill, for the sake of others"},
		{"traceengine.go", "the events of accounts and spans that the engine passes to the tracer"},
		{"peaks.go", "the most that shared scopes have held"},
	}},
	{"records", "kept for the engine, and independent of it", []room{
		{"fairshare.go", "what each subnet holds of the shared scopes, and the groups around it. `internal/groups/` counts"},
		{"fairstate.go", "what groups hold, as snapshots show it"},
		{"earmark.go", "parts of limits that are kept for peers and protocols which the host names"},
		{"roomconfig.go", "how room is made"},
		{"memberpeaks.go", "the most that any one peer has held, ever and lately"},
		{"leaks.go", "the oldest open scopes, and those that were dropped without Done"},
		{"trace.go traceevent.go tracefile.go", "the tracer; its events; its file"},
	}},
	{"in force", "what the engine asks", []room{
		{"allownames.go", "host names in the allowlist, looked up at intervals"},
		{"limitbook.go", "the limits of one Limiter, read for the engine"},
		{"gate.go gaterefusals.go", "the gates, made from a configuration; what they refuse, as errors. `internal/subnets/` counts for them"},
	}},
	{"limits", "configurations", []room{
		{"limits.go", "configurations: partial ones and complete ones"},
		{"baselimit.go limitval.go", "the limit of one scope; one number of a configuration"},
		{"rates.go", "how fast connections and streams may come"},
		{"limitsjson.go", "reading files of limits strictly"},
		{"limitcheck.go configerror.go", "checks of a configuration; errors with their place"},
		{"gatelimits.go", "the part of a configuration that is about the gates"},
		{"gateconfig.go", "that part in the form that the gates use"},
		{"costs.go", "what connections and streams cost by themselves"},
		{"defaults.go", "default limits and scaling"},
		{"pressure.go", "the memory of the whole process"},
		{"machine.go", "what this process may use of its machine"},
		{"reach.go", "limits that can never be reached"},
		{"settings.go", "a configuration as a list of values with their origins"},
		{"settingorigins.go", "where each value of a configuration comes from"},
		{"fdlimit_unix.go fdlimit_other.go", "file descriptors of this process"},
		{"adapter.go", "limits made with another package"},
	}},
	{"gates", "count by address, before the scopes", []room{
		{"subnet.go rate.go", "limits on connections at a time; on connections in a time, and source verification"},
	}},
	{"refusals", "refusals as values", []room{
		{"errors.go", "a refusal as an error; names of scopes"},
		{"refusals.go", "refusals as they are counted"},
		{"history.go", "the number of refusals in the last minutes"},
		{"reporter.go", "`MetricsReporter`"},
		{"guard.go", "calls into a program's own code, whose panics are contained: reporters, listeners, connection managers, Limiters (`callbacks_test.go`)"},
	}},
	{"words", "the vocabulary of all floors", []room{
		{"amounts.go", "amounts, limits and thresholds: arithmetic without locks"},
		{"quantities.go", "eight values by name, and by dimension"},
		{"reserve.go", "how much of a limit is kept free for newcomers, where room can be made, and how the worker learns that it is needed"},
		{"kind.go", "the kinds of scopes and gates"},
		{"endpoint.go", "the address of the far end, or that it has none; `internal/ip/` has the form and keys of addresses"},
		{"allowlist.go", "addresses and peers that are admitted when others are refused"},
		{"scopenames.go", "names of scopes, as upstream's metrics spell them"},
		{"topn.go", "the first few of many by an order"},
		{"enum.go", "small numbers that have names"},
		{"text.go", "the log; amounts and tables as text"},
	}},
}
