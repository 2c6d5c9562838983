package networkservice

import "google.golang.org/protobuf/proto"

// copyOf is a deep copy; nil stays nil.
func copyOf[M proto.Message](message M) M {
	return proto.Clone(message).(M)
}

// Clone is a deep copy.
func (x *Connection) Clone() *Connection { return copyOf(x) }

// Clone is a deep copy.
func (x *ConnectionContext) Clone() *ConnectionContext { return copyOf(x) }

// Clone is a deep copy.
func (x *Mechanism) Clone() *Mechanism { return copyOf(x) }

// Clone is a deep copy.
func (x *Path) Clone() *Path { return copyOf(x) }

// Clone is a deep copy.
func (x *PathSegment) Clone() *PathSegment { return copyOf(x) }

// Clone is a deep copy.
func (x *NetworkServiceRequest) Clone() *NetworkServiceRequest { return copyOf(x) }

// Clone is a deep copy.
func (x *MonitorScopeSelector) Clone() *MonitorScopeSelector { return copyOf(x) }

// Clone is a deep copy.
func (x *ConnectionEvent) Clone() *ConnectionEvent { return copyOf(x) }

// Clone is a deep copy.
func (x *IPContext) Clone() *IPContext { return copyOf(x) }

// Clone is a deep copy.
func (x *DNSContext) Clone() *DNSContext { return copyOf(x) }

// Clone is a deep copy.
func (x *DNSConfig) Clone() *DNSConfig { return copyOf(x) }

// Clone is a deep copy.
func (x *Route) Clone() *Route { return copyOf(x) }

// Equals compares values.
func (x *Connection) Equals(other *Connection) bool { return proto.Equal(x, other) }

// Equals compares values.
func (x *ConnectionContext) Equals(other *ConnectionContext) bool { return proto.Equal(x, other) }

// Equals compares values.
func (x *Mechanism) Equals(other *Mechanism) bool { return proto.Equal(x, other) }

// Equals compares values.
func (x *Path) Equals(other *Path) bool { return proto.Equal(x, other) }

// Equals compares values.
func (x *PathSegment) Equals(other *PathSegment) bool { return proto.Equal(x, other) }
