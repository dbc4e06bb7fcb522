package rcmgr

// What the tests with real hosts, outside of this package, may do.

// Reap collects idle scopes at once.
func (m *Manager) Reap() { m.reap() }
