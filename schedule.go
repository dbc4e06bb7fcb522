package rcmgr

// What a manager does again and again is done by one worker, for a process may have
// hundreds of managers that are idle.

import (
	"slices"
	"sync/atomic"
	"time"
)

// job is something that is done every so often, for the first time after that.
type job struct {
	every time.Duration
	do    func()
	// apart is for what calls other people's code: that may take long, or end its goroutine.
	// It has one of its own while it is at work, and holds up nobody. What is due meanwhile
	// is left out.
	apart bool

	due  time.Time
	busy atomic.Bool // it is at work, apart
}

// workUntilClosed does all jobs, one after the other, each when it is due.
func (m *Manager) workUntilClosed(jobs []*job) {
	now := time.Now()
	for _, j := range jobs {
		j.due = now.Add(j.every)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := slices.MinFunc(jobs, func(a, b *job) int { return a.due.Compare(b.due) })
		timer.Reset(time.Until(next.due))
		select {
		case <-timer.C:
			next.putOff(time.Now())
			m.begin(next)
		case <-m.stop:
			return
		}
	}
}

// putOff makes the job due at its next time after now. Times that were missed are left out.
func (j *job) putOff(now time.Time) {
	missed := now.Sub(j.due) / j.every
	j.due = j.due.Add((missed + 1) * j.every)
}

// begin does a job, or lets it be done.
func (m *Manager) begin(j *job) {
	switch {
	case !j.apart:
		j.do()
	case j.busy.CompareAndSwap(false, true):
		m.workers.Go(func() {
			defer j.busy.Store(false)
			j.do()
		})
	}
}

// jobs returns what this manager does again and again.
func (m *Manager) jobs() []*job {
	jobs := []*job{
		{every: reapInterval, do: m.reap},
		{every: historyInterval, do: func() { m.history.keep(m.refusedByNow()) }},
		{every: peakInterval, do: m.followPeaks},
	}
	if m.leaks != nil {
		jobs = append(jobs, &job{every: leakTick, do: m.leaks.lookAtClock})
	}
	if m.noting {
		jobs = append(jobs, &job{every: m.options.refusalLog, do: m.logRefusals, apart: true})
	}
	if m.pressure != nil {
		jobs = append(jobs, &job{every: m.pressure.every, do: m.pressure.look, apart: true})
	}
	if by := &m.options; len(by.nearLimit)+len(by.trimmed) > 0 {
		watch := newLimitWatch(m, by.nearLimit, by.trimmed)
		jobs = append(jobs, &job{every: nearInterval, do: watch.look, apart: true})
	}
	return jobs
}
