// Package memif is the mechanism of shared memory between two processes.
package memif

// MECHANISM is its type.
const MECHANISM = "MEMIF"
