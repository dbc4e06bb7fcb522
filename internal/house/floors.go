package main

// floor is a set of files that may name what lower floors, and others of its own, declare.
type floor struct {
	name  string
	about string
	rooms []room
}

// room is a file, or files that belong together, and what is in it.
type room struct {
	files string // separated by spaces
	about string
}

// engine is the one floor whose files may name each other in circles: a scope, its account,
// the share of a pool and their stripe are one machine.
const engine = "engine"

// floors are the files of package rcmgr, from the top down. A new file goes here, and
// go run ./internal/house -write brings CONTRIBUTING.md in line.
var floors = []floor{
	{"top", "makes the rest, and serves it", []room{
		{"new.go", "making a manager from limits and options; closing it"},
		{"schedule.go", "what a manager does again and again, by one worker"},
		{"handle.go", "one manager for several hosts"},
		{"nodelimits.go", "limits for a node, from two numbers"},
		{"crosscheck.go", "limits that contradict each other, or the connection manager"},
		{"page.go", "the live page, with questions in its address"},
	}},
	{"seeing", "looks, and decides nothing", []room{
		{"snapshot.go snapshotgates.go", "`Snapshot`: everything at one instant; what the gates keep"},
		{"snapshotjson.go", "the same as JSON"},
		{"table.go snapshotdiff.go", "a snapshot as people read it; what has changed between two"},
		{"explain.go", "would it be admitted now, and what stands in the way"},
		{"stat.go", "`Stat`; the reading that metrics are made of"},
		{"busiest.go", "which services and protocols a look names, where there are many"},
		{"limitsinforce.go", "the limits in force, read back"},
		{"refusallog.go", "the log of refusals"},
		{"nearlimit.go", "who is called when a limit is nearly reached; trimming"},
		{"metrics.go families.go", "Prometheus: registration; what is shown"},
		{"settings.go", "a configuration as people read and write it"},
	}},
	{"door", "what a host calls", []room{
		{"manager.go", "`Manager`: its scopes to look at, its allowlist, observing"},
		{"options.go", "options"},
		{"open.go", "how connections and streams come to be"},
		{"opening.go", "what is to be opened, before it is; holders that serve again"},
		{"conn.go", "a connection, and how it moves to its peer"},
		{"stream.go", "a stream, and how it is attached to protocol and service"},
		{"entry.go", "what a connection passes before any scope is asked"},
		{"gateswap.go", "other gates while the manager runs"},
		{"setlimits.go", "other limits while the manager runs"},
	}},
	{engine, "accounts and decides", []room{
		{"engine.go", "what decides: stripes, shared scopes, limits in force"},
		{"stripe.go", "a lock and all that lies under it"},
		{"scope.go", "trees of holders: connections, streams and spans"},
		{"shared.go", "peers, services, protocols and the four scopes that are always there, as scopes themselves"},
		{"account.go", "what one scope, or a stripe's share of it, uses and may use"},
		{"pool.go", "shared scopes: credit, half rule, loose and tight"},
		{"chain.go", "one operation: check all accounts of its chain, then charge all"},
		{"unit.go", "connections and streams as they are counted, and the shortest ways to open, move and end them"},
		{"memory.go", "reserving and releasing memory: the shortest way through a chain"},
		{"refusing.go", "a refusal: noted, observed only or counted, returned as an error, logged"},
		{"reap.go", "collecting what is unused"},
		{"ration.go", "how much of a limit a request may fill, for the sake of others"},
		{"traceengine.go", "where the engine tells the tracer"},
		{"peaks.go", "the most that shared scopes have held"},
	}},
	{"records", "written down for the engine, which is not asked", []room{
		{"fairshare.go", "what the subnets hold of what all share"},
		{"memberpeaks.go", "the most that any one peer has held, ever and lately"},
		{"leaks.go", "the oldest open scopes; those that are dropped without Done"},
		{"trace.go traceevent.go tracefile.go", "the tracer; its events; its file"},
	}},
	{"in force", "what the engine asks", []room{
		{"limitbook.go", "what one Limiter says, read for the engine"},
		{"gate.go gaterefusals.go", "the gates, made from a configuration; what they refuse, as errors. `internal/subnets/` counts for them"},
	}},
	{"limits", "what a configuration says", []room{
		{"limits.go", "configurations: partial ones and complete ones"},
		{"baselimit.go limitval.go", "the limit of one scope; one number of a configuration"},
		{"limitsjson.go", "what a file of limits may say"},
		{"limitcheck.go configerror.go", "what is wrong with a configuration, and where"},
		{"gatelimits.go", "what a configuration says about the gates"},
		{"gateconfig.go", "the same, as the gates use it"},
		{"costs.go", "what connections and streams cost by themselves"},
		{"defaults.go", "default limits and scaling"},
		{"pressure.go", "the memory of the whole process"},
		{"machine.go", "what this process may use of its machine"},
		{"reach.go", "limits that can never be reached"},
		{"settingorigins.go", "where each value of a configuration comes from"},
		{"fdlimit_unix.go fdlimit_other.go", "file descriptors of this process"},
		{"adapter.go", "limits made with another package"},
	}},
	{"gates", "count by address, before the scopes", []room{
		{"subnet.go rate.go", "limits on connections at a time; on connections in a time, and source verification"},
	}},
	{"refusals", "what a refusal says", []room{
		{"errors.go", "a refusal as an error; names of scopes"},
		{"refusals.go", "refusals as they are counted"},
		{"history.go", "how many there were in the last minutes"},
		{"reporter.go", "`MetricsReporter`"},
		{"guard.go", "faults of other people's code that is called: reporters, listeners, connection managers, Limiters (`callbacks_test.go`)"},
	}},
	{"words", "what everything is said in", []room{
		{"amounts.go", "amounts, limits and thresholds: arithmetic without locks"},
		{"quantities.go", "eight values by name, and by dimension"},
		{"kind.go", "the kinds of scopes and gates"},
		{"endpoint.go", "the address of the far end, or that it has none; `internal/ip/` has the form and keys of addresses"},
		{"allowlist.go", "what is let in when everything else is refused"},
		{"scopenames.go", "names of scopes, as upstream's metrics spell them"},
		{"crowd.go", "maps that were large once"},
		{"topn.go", "the first few of many by an order"},
		{"enum.go", "small numbers that have names"},
		{"text.go", "the log; amounts and tables as text"},
	}},
}
