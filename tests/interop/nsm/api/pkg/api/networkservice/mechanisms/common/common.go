// Package common names the parameters that several mechanisms share.
package common

const (
	// InterfaceNameKey is the name of the network interface.
	InterfaceNameKey = "name"
	// InodeURL locates a network namespace or a file.
	InodeURL = "inodeURL"
	// SrcIP is the address of the client's side of a tunnel.
	SrcIP = "src_ip"
	// DstIP is the address of the endpoint's side of a tunnel.
	DstIP = "dst_ip"
	// SrcOriginalIP is SrcIP before it was mapped to one that other domains reach.
	SrcOriginalIP = "orig_src_ip"
	// DstOriginalIP is DstIP before it was mapped.
	DstOriginalIP = "orig_dst_ip"
)
