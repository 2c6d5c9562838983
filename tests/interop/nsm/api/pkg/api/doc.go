// Package api names the gRPC services that a value implements, as the health service of a process lists them.
package api

import (
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
)

// ServiceNames lists the full gRPC names of the services that service implements.
func ServiceNames(service any) []string {
	return slices.Concat(networkservice.ServiceNames(service), registry.ServiceNames(service))
}
