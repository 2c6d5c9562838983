// Package kernel is the mechanism of a network interface of the kernel.
package kernel

import (
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/common"
)

const (
	// MECHANISM is its type.
	MECHANISM = "KERNEL"
	// LinuxIfMaxLength is what the kernel takes for the name of an interface.
	LinuxIfMaxLength = 15
)

// Mechanism reads and writes the parameters of a kernel mechanism.
type Mechanism struct {
	*networkservice.Mechanism
}

// ToMechanism is m as a kernel mechanism, nil where it is of another type.
func ToMechanism(m *networkservice.Mechanism) *Mechanism {
	if m.GetType() != MECHANISM {
		return nil
	}
	if m.Parameters == nil {
		m.Parameters = map[string]string{}
	}
	return &Mechanism{m}
}

// GetInterfaceName is the name of the interface, cut to what the kernel takes.
func (m *Mechanism) GetInterfaceName() string {
	name := m.GetParameters()[common.InterfaceNameKey]
	return name[:min(len(name), LinuxIfMaxLength)]
}

// SetInterfaceName names the interface.
func (m *Mechanism) SetInterfaceName(name string) *Mechanism {
	m.Parameters[common.InterfaceNameKey] = name
	return m
}

// SetNetNSURL says in which network namespace the interface is to be.
func (m *Mechanism) SetNetNSURL(url string) *Mechanism {
	m.Parameters[common.InodeURL] = url
	return m
}
