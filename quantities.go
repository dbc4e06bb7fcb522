package rcmgr

// Eight values by name, one for each limit, as the types that users see have them, and by
// dimension, as the engine has them.

// limitOrder is the order of limits in configurations, as in quantities.counts.
var limitOrder = [numDims]dim{
	dimStreams, dimStreamsIn, dimStreamsOut, dimConns, dimConnsIn, dimConnsOut, dimFD, dimMemory,
}

// numRates is the number of dimensions that have rates: those from dimStreamsIn to dimConns.
const numRates = 6

// rateOrder is the order of rates in configurations.
var rateOrder = [numRates]dim(limitOrder[:numRates])

// quantities is the shape of one number for each limit, such as those of a scope's refusals.
type quantities[Count, Bytes comparable] struct {
	Streams         Count
	StreamsInbound  Count
	StreamsOutbound Count
	Conns           Count
	ConnsInbound    Count
	ConnsOutbound   Count
	FD              Count
	Memory          Bytes
}

// counts returns everything but memory. File descriptors come last, because they do not
// grow with memory as the others do.
func (q *quantities[Count, Bytes]) counts() [7]*Count {
	return [...]*Count{
		&q.Streams, &q.StreamsInbound, &q.StreamsOutbound,
		&q.Conns, &q.ConnsInbound, &q.ConnsOutbound,
		&q.FD,
	}
}

// fieldsByDim returns the fields in the order of amounts.
func fieldsByDim[T comparable](q *quantities[T, T]) [numDims]*T {
	fields := [numDims]*T{dimMemory: &q.Memory}
	for i, field := range q.counts() {
		fields[limitOrder[i]] = field
	}
	return fields
}

// byDim returns the values in the order of amounts.
func byDim[T comparable](q quantities[T, T]) (values [numDims]T) {
	for d, field := range fieldsByDim(&q) {
		values[d] = *field
	}
	return values
}

// quantitiesOf returns the quantities whose counts are those of each dimension.
func quantitiesOf[Count, Bytes comparable](count func(dim) Count, memory Bytes) (q quantities[Count, Bytes]) {
	for i, field := range q.counts() {
		*field = count(limitOrder[i])
	}
	q.Memory = memory
	return q
}
