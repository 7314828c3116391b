import java.io.File;
import java.io.FileOutputStream;
import java.io.OutputStream;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.hdfs.HdfsConfiguration;
import org.apache.hadoop.hdfs.MiniDFSCluster;
import org.apache.hadoop.yarn.conf.YarnConfiguration;
import org.apache.hadoop.yarn.server.MiniYARNCluster;

/** HDFS and YARN in one process: MiniHadoop FOLDER NODES MEMORY_MB VCORES. It and its containers end with its standard input. */
public class MiniHadoop {
    public static void main(String[] args) {
        try {
            run(new File(args[0]), Integer.parseInt(args[1]), Integer.parseInt(args[2]), Integer.parseInt(args[3]));
        } catch (Throwable error) {  // threads of the servers would keep the process alive
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    private static void run(File folder, int nodes, int memory, int cores) throws Exception {
        Configuration settings = new HdfsConfiguration();
        settings.set("hdfs.minidfs.basedir", new File(folder, "dfs").getPath());
        MiniDFSCluster dfs = new MiniDFSCluster.Builder(settings).numDataNodes(1).build();
        dfs.waitActive();
        String fs = dfs.getFileSystem().getUri().toString();

        YarnConfiguration yarn = new YarnConfiguration(dfs.getConfiguration(0));
        yarn.set("fs.defaultFS", fs);
        yarn.setInt("yarn.minicluster.yarn.nodemanager.resource.memory-mb", memory);
        yarn.setInt("yarn.nodemanager.resource.cpu-vcores", cores);
        yarn.setInt("yarn.scheduler.minimum-allocation-mb", 128);
        yarn.setInt("yarn.scheduler.maximum-allocation-mb", memory);
        // Containers are killed by the memory that their processes use, as on a cluster without cgroups. Virtual
        // memory, of which TensorFlow maps much, does not count.
        yarn.setBoolean("yarn.minicluster.control-resource-monitoring", true);
        yarn.setBoolean("yarn.nodemanager.resource.memory.enforced", false);
        yarn.setBoolean("yarn.nodemanager.vmem-check-enabled", false);
        yarn.setBoolean("yarn.nodemanager.pmem-check-enabled", true);
        yarn.setInt("yarn.nodemanager.container-monitor.interval-ms", 500);
        yarn.setInt("yarn.resourcemanager.nodemanagers.heartbeat-interval-ms", 200);  // containers start then
        yarn.set("yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage", "99.9");
        yarn.set("yarn.scheduler.capacity.root.queues", "default");
        yarn.set("yarn.scheduler.capacity.root.default.capacity", "100");
        yarn.set("yarn.scheduler.capacity.maximum-am-resource-percent", "0.5");
        yarn.set("yarn.scheduler.capacity.resource-calculator",
            "org.apache.hadoop.yarn.util.resource.DefaultResourceCalculator");
        System.setProperty("test.build.data", new File(folder, "yarn").getPath());
        MiniYARNCluster cluster = new MiniYARNCluster("mini", nodes, 1, 1);
        cluster.init(yarn);
        cluster.start();
        cluster.waitForNodeManagersToConnect(60_000);

        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            ProcessHandle.current().descendants().forEach(ProcessHandle::destroyForcibly);
            Runtime.getRuntime().halt(0);  // without the servers' own ends, which take long
        }));
        write(new File(folder, "conf"), cluster.getConfig(), fs);
        System.out.println("READY");
        while (System.in.read() >= 0) {
        }
        System.exit(0);
    }

    /** What clients need: the clusters' other settings name classes of tests, which Spark does not have. */
    private static void write(File folder, Configuration all, String fs) throws Exception {
        Configuration out = new Configuration(false);
        out.set("fs.defaultFS", fs);
        out.set("dfs.replication", "1");
        out.set("yarn.resourcemanager.hostname", all.get("yarn.resourcemanager.hostname"));
        for (String name : new String[] {"", "scheduler.", "admin.", "resource-tracker.", "webapp."}) {
            String key = "yarn.resourcemanager." + name + "address";
            if (all.get(key) != null) {
                out.set(key, all.get(key));
            }
        }
        folder.mkdirs();
        for (String name : new String[] {"core-site.xml", "hdfs-site.xml", "yarn-site.xml"}) {
            try (OutputStream file = new FileOutputStream(new File(folder, name))) {
                out.writeXml(file);
            }
        }
    }
}
