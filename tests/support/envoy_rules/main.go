// Writes what Envoy's own API definitions demand of each message that Meltemi has a part of: the
// validation rules (protoc-gen-validate) of go-control-plane's generated packages, one a line:
//
//	message <TAB> field, or "oneof NAME", or "-" <TAB> rule=value
//
// Standard input: a FileDescriptorSet of userspace/api, which says which messages those are.
// Run by generate.sh; never part of a build or a test.
package main

import (
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/envoyproxy/protoc-gen-validate/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// leaves lists every set scalar below a rule message as path=value.
func leaves(prefix string, m protoreflect.Message, out *[]string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := prefix + string(f.Name())
		switch {
		case f.IsList():
			for i := 0; i < v.List().Len(); i++ {
				*out = append(*out, fmt.Sprintf("%s=%v", name, v.List().Get(i)))
			}
		case f.Kind() == protoreflect.MessageKind:
			if d, ok := v.Message().Interface().(interface {
				GetSeconds() int64
				GetNanos() int32
			}); ok {
				*out = append(*out, fmt.Sprintf("%s=%d", name, d.GetSeconds()*1e9+int64(d.GetNanos())))
				return true
			}
			leaves(name+".", v.Message(), out)
		case f.Kind() == protoreflect.EnumKind:
			*out = append(*out, fmt.Sprintf("%s=%s", name, f.Enum().Values().ByNumber(v.Enum()).Name()))
		default:
			*out = append(*out, fmt.Sprintf("%s=%v", name, v))
		}
		return true
	})
}

func rules(name protoreflect.FullName) []string {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return []string{fmt.Sprintf("# %s is not Envoy's", name)}
	}
	m := d.(protoreflect.MessageDescriptor)
	var out []string
	if proto.GetExtension(m.Options(), validate.E_Disabled).(bool) {
		return nil
	}
	for i := 0; i < m.Oneofs().Len(); i++ {
		o := m.Oneofs().Get(i)
		if proto.GetExtension(o.Options(), validate.E_Required).(bool) {
			out = append(out, fmt.Sprintf("%s\toneof %s\trequired=true", name, o.Name()))
		}
	}
	for i := 0; i < m.Fields().Len(); i++ {
		f := m.Fields().Get(i)
		r, _ := proto.GetExtension(f.Options(), validate.E_Rules).(*validate.FieldRules)
		if r == nil {
			continue
		}
		var all []string
		leaves("", r.ProtoReflect(), &all)
		for _, one := range all {
			out = append(out, fmt.Sprintf("%s\t%s\t%s", name, f.Name(), one))
		}
	}
	return out
}

func visit(prefix string, m *descriptorpb.DescriptorProto, out *[]string) {
	if m.GetOptions().GetMapEntry() {
		return
	}
	name := prefix + "." + m.GetName()
	*out = append(*out, name)
	for _, inner := range m.NestedType {
		visit(name, inner, out)
	}
}

func main() {
	bytes, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(bytes, &set); err != nil {
		panic(err)
	}
	var names []string
	for _, file := range set.File {
		for _, m := range file.MessageType {
			visit(file.GetPackage(), m, &names)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "envoy.") {
			continue
		}
		lines := rules(protoreflect.FullName(name))
		sort.Strings(lines)
		for _, line := range lines {
			fmt.Println(line)
		}
	}
}
