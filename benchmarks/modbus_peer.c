/* The peer of modbus_read: libmodbus as server and as client, in C.
 *   modbus-peer server PORT        holding register i holds i; prints "ready"
 *   modbus-peer client PORT SECONDS REGISTERS   reads from 0, one request in flight; prints how many a second */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 2000 };

static int serve(modbus_t *context) {
    modbus_mapping_t *map = modbus_mapping_new(COUNT, COUNT, COUNT, COUNT);
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    int listener = modbus_tcp_listen(context, 4), size;
    if (map == NULL || listener < 0) return 1;
    for (int i = 0; i < COUNT; i++) map->tab_registers[i] = i;
    puts("ready");
    fflush(stdout);
    for (;;) {
        modbus_tcp_accept(context, &listener);
        while ((size = modbus_receive(context, query)) >= 0)
            if (size > 0) modbus_reply(context, query, size, map);
        modbus_close(context);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int ask(modbus_t *context, double seconds, int registers) {
    uint16_t values[MODBUS_MAX_READ_REGISTERS];
    long reads = 0;
    if (modbus_connect(context) < 0) return 1;
    double began = now(), passed;
    while ((passed = now() - began) < seconds) {
        if (modbus_read_registers(context, 0, registers, values) != registers || values[registers - 1] != registers - 1) return 1;
        reads++;
    }
    printf("%.1f\n", reads / passed);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    modbus_t *context = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
    if (context == NULL) return 1;
    if (strcmp(argv[1], "server") == 0) return serve(context);
    return argc == 5 ? ask(context, atof(argv[3]), atoi(argv[4])) : 2;
}
