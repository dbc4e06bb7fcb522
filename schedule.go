package rcmgr

// The periodic jobs of a manager. One goroutine runs them all, because a process may
// have hundreds of idle managers.

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// job is a task that runs periodically. It runs for the first time after one period.
type job struct {
	every time.Duration
	do    func()
	// apart means that each run has a goroutine of its own. Jobs that call foreign code
	// need it: that code may take long, or end its goroutine, and must not hold up the
	// other jobs. If the job is still running when it is due again, that run is skipped.
	apart bool
	// early has the job run before it is due. At most one job of a manager has it; that of the
	// others is nil.
	early chan struct{}

	due  time.Time
	busy atomic.Bool // a run that has its own goroutine has not ended
}

// workUntilClosed runs the jobs one after another, each when it is due, until the
// manager is closed.
func (m *Manager) workUntilClosed(jobs []*job) {
	now := time.Now()
	for _, j := range jobs {
		j.due = now.Add(j.every)
	}
	asked := slices.IndexFunc(jobs, func(j *job) bool { return j.early != nil })
	var early chan struct{}
	if asked >= 0 {
		early = jobs[asked].early
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
		case <-early:
			m.begin(jobs[asked])
		case <-m.stop:
			return
		}
	}
}

// putOff makes the job due at its next time after now, and skips those it has missed.
func (j *job) putOff(now time.Time) {
	missed := now.Sub(j.due) / j.every
	j.due = j.due.Add((missed + 1) * j.every)
}

// begin runs a job, or starts a goroutine that does.
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

// jobs returns the periodic jobs of this manager.
func (m *Manager) jobs() []*job {
	jobs := []*job{
		{every: reapInterval, do: m.reap},
		{every: historyInterval, do: func() { m.history.keep(m.refusedByNow()) }},
		{every: peakInterval, do: m.followPeaks},
	}
	if m.options.measured() {
		reg := prometheus.DefaultRegisterer // the program may set another one later
		g := &guard{callback: callbackOf("prometheus.DefaultRegisterer", reg)}
		warn := func() { g.call(func() { live.warnIfHidden(reg) }) }
		jobs = append(jobs, &job{every: hiddenInterval, do: warn, apart: true})
	}
	if m.leaks != nil {
		jobs = append(jobs, &job{every: leakTick, do: m.leaks.lookAtClock})
	}
	if m.noting {
		jobs = append(jobs, &job{every: m.options.refusalLog, do: m.logRefusals, apart: true})
	}
	if m.noting && m.room != nil {
		jobs = append(jobs, &job{every: m.options.refusalLog, do: (&roomLog{}).of(m), apart: true})
	}
	if m.earmarks.asksPeers() {
		jobs = append(jobs, &job{every: earmarkInterval, do: m.earmarks.ask, apart: true})
	}
	if p := m.pressure; p != nil {
		look := &job{every: p.every, do: p.look, apart: true}
		if p.freeing != nil {
			look.early = p.freeing.look
		}
		jobs = append(jobs, look)
	}
	if by := &m.options; len(by.nearLimit)+len(by.trimmed) > 0 {
		watch := newLimitWatch(m, by.nearLimit, by.trimmed)
		jobs = append(jobs, &job{every: nearInterval, do: watch.look, apart: true})
	}
	return jobs
}
