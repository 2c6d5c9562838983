// Package payload names what a connection carries.
package payload

const (
	// IP is a connection of IP packets.
	IP = "IP"
	// Ethernet is a connection of Ethernet frames.
	Ethernet = "ETHERNET"
)
