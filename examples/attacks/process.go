package main

// The victim's process, as the others see it. Questions and answers go through its input
// and output.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
)

type process struct {
	cmd     *exec.Cmd
	input   io.Closer
	asks    *json.Encoder
	answers *json.Decoder
	last    bytes.Buffer // its standard error
	mu      sync.Mutex   // one question at a time
}

// startVictim starts this program again, as a victim.
func startVictim(o order) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, input: input, asks: json.NewEncoder(input), answers: json.NewDecoder(output)}
	cmd.Stderr = &p.last
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := p.asks.Encode(o); err != nil {
		return nil, p.lost(err)
	}
	return p, nil
}

// ask asks the victim a question. It is safe for concurrent use.
func (p *process) ask(q question) (r report, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.asks.Encode(q); err != nil {
		return r, p.lost(err)
	}
	if err := p.answers.Decode(&r); err != nil {
		return r, p.lost(err)
	}
	return r, nil
}

// lost ends a victim that does not answer, and returns an error that says why.
func (p *process) lost(err error) error {
	p.input.Close()
	if end := p.cmd.Wait(); end != nil {
		err = end
	}
	return fmt.Errorf("the victim does not answer: %w\n%s", err, &p.last)
}

// stop ends the victim, and waits until it has exited.
func (p *process) stop() error {
	p.input.Close()
	return p.cmd.Wait()
}
