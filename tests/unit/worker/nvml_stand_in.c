/* A libnvidia-ml.so.1 for tests: as much of NVML's interface as pynvml is asked for.
 *
 * Device 0 is a whole GPU of 16,000 MB; device 1, of 40,000 MB, is in MIG mode with two instances,
 * in slots 0 and 2. Files in the folder NVML_STAND_IN direct it, looked up at each call:
 *   unloaded    the driver is not loaded
 *   hang        the number of devices is not answered as long as the file is there
 *   lost0       device 0 has fallen off the bus; lost1 likewise
 *   gone0       device 0 is not listed; what is left moves up
 *   sick0       device 0 answers with an error that is not known
 *   processes   lines "DEVICE PID MEGABYTES", DEVICE being 0, 1.0 or 1.2
 *   sessions    is written by it: how many sessions are open
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7,
       NOT_LOADED = 9, LOST = 15, UNKNOWN = 999 };

typedef struct { const char *place, *uuid, *name; unsigned long long megabytes; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilisation;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process;

static device boards[] = {
    {"0", "GPU-00000000-0000-0000-0000-000000000000", "Stand-in 16", 16000},
    {"1", "GPU-11111111-1111-1111-1111-111111111111", "Stand-in 40", 40000},
};
static device partitions[] = {
    {"1.0", "MIG-11111111-0000-0000-0000-000000000000", "Stand-in 40 MIG 3g.20gb", 20000},
    {"1.2", "MIG-11111111-2222-0000-0000-000000000000", "Stand-in 40 MIG 1g.5gb", 5000},
};
static int sessions;

static FILE *open_file(const char *name, char board, const char *mode)
{
    char path[4096];
    const char *folder = getenv("NVML_STAND_IN");
    snprintf(path, sizeof path, "%s/%s%.1s", folder ? folder : ".", name, board ? &board : "");
    return fopen(path, mode);
}

static int told(const char *name, char board)
{
    FILE *file = open_file(name, board, "r");
    if (file) fclose(file);
    return file != NULL;
}

static void note_sessions(void)
{
    FILE *file = open_file("sessions", 0, "w");
    if (file) { fprintf(file, "%d", sessions); fclose(file); }
}

static int state(const device *one)
{
    if (!sessions) return UNINITIALIZED;
    if (told("sick", one->place[0])) return UNKNOWN;
    return told("lost", one->place[0]) ? LOST : OK;
}

const char *nvmlErrorString(int code) { (void)code; return "stand-in error"; }

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (told("unloaded", 0)) return NOT_LOADED;
    sessions++;
    note_sessions();
    return OK;
}

int nvmlShutdown(void)
{
    sessions--;
    note_sessions();
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    while (told("hang", 0)) usleep(1000);
    if (told("unloaded", 0)) return NOT_LOADED;
    *count = told("gone", '0') ? 1 : 2;
    return sessions ? OK : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **found)
{
    *found = &boards[index + (told("gone", '0') ? 1 : 0)];
    return state(*found);
}

int nvmlDeviceGetUUID(device *one, char *text, unsigned size)
{
    snprintf(text, size, "%s", one->uuid);
    return state(one);
}

int nvmlDeviceGetName(device *one, char *text, unsigned size)
{
    snprintf(text, size, "%s", one->name);
    return state(one);
}

int nvmlDeviceGetMigMode(device *one, unsigned *current, unsigned *pending)
{
    if (one != &boards[1]) return NOT_SUPPORTED;
    *current = *pending = 1;
    return state(one);
}

int nvmlDeviceGetMaxMigDeviceCount(device *one, unsigned *count)
{
    *count = 7;
    return state(one);
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *one, unsigned index, device **found)
{
    if (index != 0 && index != 2) return NOT_FOUND;
    *found = &partitions[index / 2];
    return state(one);
}

int nvmlDeviceGetUtilizationRates(device *one, utilisation *rates)
{
    if (one != &boards[0]) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 12;
    return state(one);
}

static unsigned read_processes(const device *one, process *found, unsigned size)
{
    FILE *file = open_file("processes", 0, "r");
    char place[16];
    unsigned pid, count = 0;
    unsigned long long megabytes;
    while (file && fscanf(file, "%15s %u %llu", place, &pid, &megabytes) == 3) {
        if (strcmp(place, one->place)) continue;
        if (count < size) found[count] = (process){pid, megabytes << 20, 0, 0};
        count++;
    }
    if (file) fclose(file);
    return count;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device *one, unsigned *count, process *found)
{
    unsigned size = found ? *count : 0;
    if (state(one)) return state(one);
    *count = read_processes(one, found, size);
    return *count > size ? TOO_SMALL : OK;
}

int nvmlDeviceGetMemoryInfo(device *one, memory *seen)
{
    process found[64];
    unsigned count = read_processes(one, found, 64);
    seen->total = one->megabytes << 20;
    seen->used = 500ULL << 20;
    for (unsigned i = 0; i < count && i < 64; i++) seen->used += found[i].used;
    seen->free = seen->total - seen->used;
    return state(one);
}
