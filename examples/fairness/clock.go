package main

// Simulated time: a queue of events, ordered by time, and at the same time in the order
// in which they were scheduled. Nothing waits, so an hour takes as long as the work in
// it, and the same events always happen in the same order.

import (
	"container/heap"
	"time"
)

// clock is a queue of events and the current time. It is not safe for concurrent use.
type clock struct {
	now   time.Duration // since the beginning
	queue events
	asked uint64
	each  func() // called after each event; may be nil
}

// time returns the current time as hosts see it.
func (c *clock) time() time.Time { return time.Unix(1_000_000_000, 0).Add(c.now) }

type event struct {
	at   time.Duration
	turn uint64
	do   func()
}

// after schedules a call of do when d has passed.
func (c *clock) after(d time.Duration, do func()) {
	c.asked++
	heap.Push(&c.queue, event{c.now + d, c.asked, do})
}

// run runs all events, until none is left.
func (c *clock) run() {
	for len(c.queue) > 0 {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
		if c.each != nil {
			c.each()
		}
	}
}

type events []event

func (q events) Len() int      { return len(q) }
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q events) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].turn < q[j].turn
}
func (q *events) Push(e any) { *q = append(*q, e.(event)) }
func (q *events) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	*q = (*q)[:last]
	return e
}
