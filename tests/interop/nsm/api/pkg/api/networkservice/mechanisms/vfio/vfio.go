// Package vfio is the mechanism of a PCI function handed through. Only tests of the sdk name it, and `go mod tidy` reads
// those too.
package vfio

// MECHANISM is its type.
const MECHANISM = "VFIO"
