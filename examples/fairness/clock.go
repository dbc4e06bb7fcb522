package main

// Simulated time: a queue of what is to happen, the earliest first, and what was
// asked for first where times are the same. Nothing waits, so an hour takes as long
// as the work in it, and the same requests always give the same order.

import (
	"container/heap"
	"time"
)

// clock is not safe for concurrent use.
type clock struct {
	now   time.Duration // since the beginning
	queue events
	asked uint64
}

type event struct {
	at   time.Duration
	turn uint64
	do   func()
}

// after has do called once d has passed.
func (c *clock) after(d time.Duration, do func()) {
	c.asked++
	heap.Push(&c.queue, event{c.now + d, c.asked, do})
}

// run lets everything happen, until nothing is left to.
func (c *clock) run() {
	for len(c.queue) > 0 {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
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
