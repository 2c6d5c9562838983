// Package cls names the two classes of mechanisms.
package cls

const (
	// LOCAL is for two ends on one host.
	LOCAL = "LOCAL"
	// REMOTE is for ends on two hosts.
	REMOTE = "REMOTE"
)
