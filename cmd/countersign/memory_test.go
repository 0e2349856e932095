package main

import (
	"testing"
	"testing/fstest"
)

func TestAvailableMemory(t *testing.T) {
	const machine = "MemTotal:        2097152 kB\nMemFree: 1 kB\n"
	tests := []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing is known", nil, 0},
		{"a machine", map[string]string{"proc/meminfo": machine, "proc/self/cgroup": "0::/\n"}, 2 << 30},
		{"a container", map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n",
		}, 256 << 20},
		{"a group without a limit below one with", map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "0::/system.slice/countersign.service\n",
			"sys/fs/cgroup/system.slice/countersign.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/memory.max":                     "1073741824\n",
		}, 1 << 30},
		{"version 1", map[string]string{
			"proc/meminfo": machine, "proc/self/cgroup": "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
		}, 512 << 20},
		{"version 1 without a limit", map[string]string{
			"proc/meminfo": machine, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 2 << 30},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for name, content := range tt.files {
				root[name] = &fstest.MapFile{Data: []byte(content)}
			}
			if got := availableMemory(root); got != tt.want {
				t.Errorf("got %d, want %d; files %v", got, tt.want, tt.files)
			}
		})
	}
}
