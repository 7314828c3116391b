import io.fabric8.kubernetes.api.model.GenericKubernetesResource;
import io.fabric8.kubernetes.client.server.mock.KubernetesCrudDispatcher;
import io.fabric8.kubernetes.client.server.mock.KubernetesMockServer;
import io.fabric8.kubernetes.client.utils.Serialization;
import io.fabric8.mockwebserver.Context;
import io.fabric8.mockwebserver.MockWebServer;
import io.fabric8.mockwebserver.crud.AttributeSet;
import io.fabric8.mockwebserver.dsl.HttpMethod;
import io.fabric8.mockwebserver.http.MockResponse;
import io.fabric8.mockwebserver.http.RecordedRequest;
import java.net.InetAddress;
import java.time.Instant;
import java.util.HashMap;
import java.util.Map;

/** An API server, which has objects and tells of changes: MiniKubernetes ADDRESS. It ends with its standard input. */
public class MiniKubernetes {
    public static void main(String[] args) throws Exception {
        KubernetesMockServer server = new KubernetesMockServer(new Context(Serialization.jsonMapper()),
            new MockWebServer(), new HashMap<>(), new Store(), false);
        server.init(InetAddress.getByName(args[0]), 0);
        System.out.println("READY http://" + args[0] + ":" + server.getPort());
        while (System.in.read() >= 0) {
        }
        System.exit(0);
    }

    private static class Store extends KubernetesCrudDispatcher {
        /** Server-side apply replaces an object, or makes one. */
        @Override
        public MockResponse handlePatch(RecordedRequest request) {
            String type = request.getHeader("Content-Type");
            if (type == null || !type.startsWith("application/apply-patch")) {
                return super.handlePatch(request);
            }
            String path = request.getPath().replaceAll("\\?.*", "");
            if (findResource(getKey(path)) != null) {
                return handleUpdate(as(HttpMethod.PUT, path, request));
            }
            return handleCreate(as(HttpMethod.POST, path.substring(0, path.lastIndexOf('/')), request));
        }

        private static RecordedRequest as(HttpMethod method, String path, RecordedRequest request) {
            return new RecordedRequest(request.getHttpVersion(), method, path, request.getHeaders(), request.getBody());
        }

        /** A pod has a status from the beginning, and before it is gone it is one that is being deleted. */
        @Override
        public void processEvent(String path, AttributeSet query, AttributeSet old, GenericKubernetesResource object,
                String text) {
            if (object != null && text != null && "Pod".equals(object.getKind()) && object.get("status") == null) {
                object.setAdditionalProperty("status", Map.of("phase", "Pending"));
                text = Serialization.asJson(object);
            }
            if (text == null) {
                GenericKubernetesResource gone = Serialization.unmarshal(map.get(old), GenericKubernetesResource.class);
                gone.getMetadata().setDeletionTimestamp(Instant.now().toString());
                super.processEvent(path, query, old, gone, Serialization.asJson(gone));
            }
            super.processEvent(path, query, old, object, text);
        }
    }
}
