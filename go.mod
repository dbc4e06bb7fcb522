module github.com/weir-p2p/rcmgr

go 1.26.0
