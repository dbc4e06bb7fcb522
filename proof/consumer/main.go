// Consumer is a program outside rcmgr's module that has a host with a resource manager of
// rcmgr. Its test shows that rcmgr's requirements change no version of what the host
// builds with.
package main

import (
	"fmt"
	"os"

	"github.com/libp2p/go-libp2p"

	"github.com/weir-p2p/rcmgr/rcmgrhost"
)

func main() {
	host, err := libp2p.New(rcmgrhost.Manager(nil))
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
	defer host.Close()
	rm, _ := rcmgrhost.Of(host)
	fmt.Println(host.ID(), "may use", rm.Limits().ToPartialLimitConfig().System.Memory, "bytes")
}
